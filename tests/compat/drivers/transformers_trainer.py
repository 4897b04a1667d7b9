"""Hugging Face's Trainer with ``report_to`` TOOL: train and evaluate a tiny BERT from nothing."""

import sys

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)


class Sentences(torch.utils.data.Dataset):
    def __init__(self, n: int) -> None:
        self.items = [
            {
                "input_ids": torch.randint(5, 50, (8,)),
                "attention_mask": torch.ones(8, dtype=torch.long),
                "labels": torch.tensor(number % 2),
            }
            for number in range(n)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int):
        return self.items[number]


def main() -> None:
    set_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=16,
        )
    )
    arguments = TrainingArguments(
        output_dir="out",
        run_name="tiny-bert",
        report_to=[sys.argv[1]],
        max_steps=8,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="no",
        per_device_train_batch_size=4,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=Sentences(32), eval_dataset=Sentences(8))
    trainer.train()
    trainer.evaluate()


if __name__ == "__main__":
    main()
