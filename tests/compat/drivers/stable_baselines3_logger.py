"""Stable-Baselines3: PPO on CartPole with its TensorBoard logger, or MLflow's and W&B's calls."""

import sys

from stable_baselines3 import PPO
from stable_baselines3.common.logger import HumanOutputFormat, KVWriter, Logger


class MLflowOutput(KVWriter):
    """As Stable-Baselines3's documentation has it for MLflow."""

    def write(self, key_values, key_excluded, step=0):
        import mlflow

        for key, value in key_values.items():
            if isinstance(value, (int, float)):
                mlflow.log_metric(key, value, step)


def main() -> None:
    tool = sys.argv[1]
    model = PPO(
        "MlpPolicy",
        "CartPole-v1",
        n_steps=64,
        batch_size=32,
        n_epochs=2,
        seed=0,
        device="cpu",
        tensorboard_log="tb_logs/sb3" if tool != "mlflow" else None,
    )
    if tool == "mlflow":
        import mlflow

        mlflow.set_experiment("sb3")
        with mlflow.start_run(run_name="ppo"):
            model.set_logger(Logger(None, [HumanOutputFormat(sys.stdout), MLflowOutput()]))
            model.learn(256, log_interval=1)
    elif tool == "wandb":
        import wandb
        from wandb.integration.sb3 import WandbCallback

        run = wandb.init(project="sb3", sync_tensorboard=True, config={"policy": "MlpPolicy"})
        model.learn(256, log_interval=1, callback=WandbCallback(verbose=2))
        run.finish()
    else:
        model.learn(256, log_interval=1)


if __name__ == "__main__":
    main()
