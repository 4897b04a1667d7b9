"""Train a small CNN on digits; log in MLflow's syntax.

    python examples/hello-pt-mlflow/train.py

With MLflow alone, the import would be ``import mlflow``. Nothing else would differ.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import zmqtrack.writers.mlflow as mlflow

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # digits.py, which all examples share
from digits import evaluate, load_data, make_model, some_images, train_epoch


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small CNN; log as to MLflow.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()

    torch.manual_seed(0)
    train_data, test_data = load_data()
    batches = DataLoader(train_data, options.batch_size, shuffle=True)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), options.lr, momentum=0.9)

    step = 0
    mlflow.set_experiment("hello-pt-mlflow")
    with mlflow.start_run():
        mlflow.log_params(vars(options))
        mlflow.set_tag("framework", "torch")
        mlflow.log_text(str(model), "model.txt")
        for number, image in enumerate(some_images(train_data, 4)):
            mlflow.log_image(image[0].numpy(), f"samples/{number}.png")
        for epoch in range(options.epochs):
            for loss in train_epoch(model, batches, optimizer):
                mlflow.log_metric("train/loss", loss, step=step)
                step += 1
            test_loss, accuracy = evaluate(model, test_data)
            mlflow.log_metrics({"test/loss": test_loss, "test/accuracy": accuracy}, step=epoch)
            print(f"epoch {epoch}: loss {test_loss:.3f}, accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
