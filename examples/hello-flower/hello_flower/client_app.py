"""What each client does in a round: train, and test what the server made of it."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from zmqtrack import SummaryWriter

from .task import CLASSES, load_data, loss, make_model

app = ClientApp()


def make_writer(context: Context) -> SummaryWriter:
    """One run for all clients of a ``flwr run``, and in it a site for each client."""
    partition = context.node_config["partition-id"]
    return SummaryWriter(run=f"flower-{context.run_id}", site=f"client-{partition}")


def _data(context: Context):
    return load_data(context.node_config["partition-id"], context.node_config["num-partitions"])


@app.train()
def train(message: Message, context: Context) -> Message:
    model = make_model(message.content["arrays"].to_numpy_ndarrays())
    images, labels, _, _ = _data(context)
    server_round, epochs = (
        message.content["config"]["server-round"],
        context.run_config["local-epochs"],
    )
    with make_writer(context) as writer:
        for epoch in range(epochs):
            model.partial_fit(images, labels, classes=CLASSES)
            step = (server_round - 1) * epochs + epoch
            writer.add_scalar("train/loss", loss(model, images, labels), step)
            writer.add_scalar("train/accuracy", model.score(images, labels), step)
    return Message(
        content=RecordDict(
            {
                "arrays": ArrayRecord([model.coef_, model.intercept_]),
                "metrics": MetricRecord({"num-examples": len(labels)}),
            }
        ),
        reply_to=message,
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    model = make_model(message.content["arrays"].to_numpy_ndarrays())
    _, _, images, labels = _data(context)
    accuracy = model.score(images, labels)
    with make_writer(context) as writer:
        writer.add_scalar("test/accuracy", accuracy, message.content["config"]["server-round"])
    metrics = {"accuracy": accuracy, "num-examples": len(labels)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
