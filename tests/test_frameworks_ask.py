"""What frameworks ask of a tool on their way, and a training with zmqtrack can answer."""

from __future__ import annotations

import pytest

import zmqtrack.writers.mlflow as mlflow
import zmqtrack.writers.wandb as wandb


def test_an_experiment_is_found_by_its_name() -> None:
    [found] = mlflow.search_experiments(filter_string="name = 'my exp'")
    assert (found.name, found.experiment_id) == ("my exp", "my exp")


def test_what_only_a_tracker_knows_of_experiments_is_refused() -> None:
    for question in ({}, {"filter_string": "name LIKE 'a%'"}, {"max_results": 5}):
        with pytest.raises(mlflow.MlflowException, match="search_experiments"):
            mlflow.search_experiments(**question)


def test_a_framework_may_say_who_it_is() -> None:
    with wandb.init(project="labels", mode="disabled") as run:
        run._label(code="transformers_trainer")
