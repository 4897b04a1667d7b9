"""Federated averaging, and what the server itself has to log."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from zmqtrack import SummaryWriter

from .task import make_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    model = make_model()
    result = FedAvg().start(
        grid=grid,
        initial_arrays=ArrayRecord([model.coef_, model.intercept_]),
        num_rounds=context.run_config["num-server-rounds"],
    )
    with SummaryWriter(run=f"flower-{context.run_id}", site="server") as writer:
        for server_round, metrics in result.evaluate_metrics_clientapp.items():
            writer.add_scalar("test/accuracy", metrics["accuracy"], server_round)
