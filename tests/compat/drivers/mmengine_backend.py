"""mmengine's Runner with the visualisation backend of TOOL."""

import sys

import numpy
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import VISUALIZERS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch.utils.data import DataLoader, TensorDataset

BACKENDS = {
    "tensorboard": {"type": "TensorboardVisBackend"},
    "mlflow": {"type": "MLflowVisBackend", "exp_name": "mmengine", "run_name": "run"},
    "wandb": {"type": "WandbVisBackend", "init_kwargs": {"project": "mmengine", "name": "run"}},
}


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, inputs, target, mode="loss"):
        return {"loss": (self.layer(inputs) - target).pow(2).mean()}


def main() -> None:
    backend = dict(BACKENDS[sys.argv[1]])
    if backend["type"] == "MLflowVisBackend":
        import os

        backend["tracking_uri"] = os.environ["MLFLOW_TRACKING_URI"]
    data = TensorDataset(torch.randn(32, 4), torch.randn(32, 1))
    runner = Runner(
        model=Model(),
        work_dir="work",
        train_dataloader=DataLoader(data, batch_size=8),
        train_cfg={"by_epoch": True, "max_epochs": 2},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.05}},
        default_hooks={"logger": {"type": "LoggerHook", "interval": 2}},
        visualizer={"type": "Visualizer", "vis_backends": [backend], "name": "compat"},
        randomness={"seed": 0},
        experiment_name="run",
        cfg=Config({"work_dir": "work"}),  # MLflow's backend takes the folder from there
    )
    image = numpy.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=numpy.uint8)
    # MLflow's backend passes the name on as a file's.
    runner.visualizer.add_image("image.png", image, 3)
    runner.train()


assert VISUALIZERS.get("Visualizer") is Visualizer

if __name__ == "__main__":
    main()
