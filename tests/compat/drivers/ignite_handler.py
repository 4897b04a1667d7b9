"""Ignite's logger of TOOL: output and metrics by engine step, optimizer, weights, gradients."""

import sys

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator, create_supervised_trainer
from ignite.handlers import global_step_from_engine
from ignite.handlers.mlflow_logger import MLflowLogger
from ignite.handlers.tensorboard_logger import (
    GradsHistHandler,
    TensorboardLogger,
    WeightsHistHandler,
)
from ignite.handlers.wandb_logger import WandBLogger
from ignite.metrics import Loss, MeanSquaredError


def main() -> None:
    tool = sys.argv[1]
    torch.manual_seed(0)
    model, criterion = torch.nn.Linear(4, 1), torch.nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    data = [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(6)]
    trainer: Engine = create_supervised_trainer(model, optimizer, criterion)
    evaluator = create_supervised_evaluator(
        model, metrics={"loss": Loss(criterion), "mse": MeanSquaredError()}
    )
    logger = {
        "tensorboard": lambda: TensorboardLogger(log_dir="tb_logs/ignite"),
        "mlflow": MLflowLogger,
        "wandb": lambda: WandBLogger(project="ignite", name="train", config={"lr": 0.05}),
    }[tool]()
    if tool == "mlflow":
        logger.log_params({"lr": 0.05, "batch": 8})
    logger.attach_output_handler(
        trainer,
        Events.ITERATION_COMPLETED(every=2),
        tag="training",
        output_transform=lambda loss: {"batch_loss": loss},
    )
    logger.attach_output_handler(
        evaluator,
        Events.EPOCH_COMPLETED,
        tag="validation",
        metric_names="all",
        global_step_transform=global_step_from_engine(trainer),
    )
    logger.attach_opt_params_handler(trainer, Events.ITERATION_STARTED(every=3), optimizer)
    if tool == "tensorboard":
        logger.attach(trainer, WeightsHistHandler(model), Events.EPOCH_COMPLETED)
        logger.attach(trainer, GradsHistHandler(model), Events.EPOCH_COMPLETED)
    if tool == "wandb":
        logger.watch(model)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(data))
    trainer.run(data, max_epochs=3)
    logger.close()


if __name__ == "__main__":
    main()
