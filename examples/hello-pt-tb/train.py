"""Train a small CNN on digits; log in TensorBoard's syntax.

    python examples/hello-pt-tb/train.py

With TensorBoard alone, the import of SummaryWriter would come from torch.utils.tensorboard.
Nothing else would differ.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from zmqtrack import SummaryWriter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # digits.py, which all examples share
from digits import evaluate, load_data, make_model, some_images, train_epoch


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small CNN; log as to TensorBoard.")
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
    with SummaryWriter(f"runs/hello-pt-tb/{time.strftime('%Y%m%d-%H%M%S')}") as writer:
        writer.add_text("model", f"```\n{model}\n```")
        writer.add_images("samples", some_images(train_data))
        for epoch in range(options.epochs):
            for loss in train_epoch(model, batches, optimizer):
                writer.add_scalar("train/loss", loss, step)
                step += 1
            test_loss, accuracy = evaluate(model, test_data)
            writer.add_scalar("test/loss", test_loss, epoch)
            writer.add_scalar("test/accuracy", accuracy, epoch)
            writer.add_histogram("weights/last", model[-1].weight, epoch)
            print(f"epoch {epoch}: loss {test_loss:.3f}, accuracy {accuracy:.1%}")
        writer.add_hparams(vars(options), {"final/accuracy": accuracy})


if __name__ == "__main__":
    main()
