"""Train a small CNN on digits; log in the syntax of Weights & Biases.

    python examples/hello-pt-wandb/train.py

With W&B alone, the import would be ``import wandb``. Nothing else would differ.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import zmqtrack.writers.wandb as wandb

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # digits.py, which all examples share
from digits import evaluate, load_data, make_model, some_images, train_epoch


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small CNN; log as to W&B.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()

    torch.manual_seed(0)
    train_data, test_data = load_data()
    batches = DataLoader(train_data, options.batch_size, shuffle=True)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), options.lr, momentum=0.9)

    run = wandb.init(project="hello-pt-wandb", config=vars(options), tags=["torch"])
    run.log({"samples": [wandb.Image(image[0].numpy()) for image in some_images(train_data, 4)]})
    for epoch in range(options.epochs):
        for loss in train_epoch(model, batches, optimizer):
            run.log({"train/loss": loss})
        test_loss, accuracy = evaluate(model, test_data)
        weights = wandb.Histogram(model[-1].weight.detach().numpy())
        run.log(
            {
                "epoch": epoch,
                "test/loss": test_loss,
                "test/accuracy": accuracy,
                "weights/last": weights,
            }
        )
        print(f"epoch {epoch}: loss {test_loss:.3f}, accuracy {accuracy:.1%}")
    run.summary["accuracy"] = accuracy
    run.finish()


if __name__ == "__main__":
    main()
