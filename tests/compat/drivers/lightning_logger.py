"""Lightning: fit, validate and test with the logger of TOOL; hyperparameters, checkpoints."""

import sys

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from torch.utils.data import DataLoader, TensorDataset


class Model(LightningModule):
    def __init__(self, lr: float = 0.05, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)

    def _loss(self, batch, name):
        loss = torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])
        self.log(name, loss)
        return loss

    def training_step(self, batch, _):
        return self._loss(batch, "train/loss")

    def validation_step(self, batch, _):
        return self._loss(batch, "val/loss")

    def test_step(self, batch, _):
        return self._loss(batch, "test/loss")

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.hparams.lr)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9),
        }


def main() -> None:
    seed_everything(0)
    data = DataLoader(TensorDataset(torch.randn(64, 4), torch.randn(64, 1)), batch_size=8)
    logger = {
        "tensorboard": lambda: TensorBoardLogger("tb_logs", name="model"),
        "mlflow": lambda: MLFlowLogger("lightning", run_name="fit", log_model=True),
        "wandb": lambda: WandbLogger(project="lightning", name="fit", log_model=True),
    }[sys.argv[1]]()
    trainer = Trainer(
        max_epochs=3,
        logger=logger,
        log_every_n_steps=2,
        callbacks=[LearningRateMonitor(), ModelCheckpoint(monitor="val/loss")],
        enable_progress_bar=False,
        accelerator="cpu",
    )
    model = Model()
    trainer.fit(model, data, data)
    trainer.test(model, data, ckpt_path="best")
    if sys.argv[1] == "wandb":
        logger.experiment.finish()


if __name__ == "__main__":
    main()
