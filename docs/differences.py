"""What a tracker shows otherwise than the real tool makes it show, and why.

Each is (tool or syntax, pattern of ``SCRIPT: ITEM``, reason). ``tests/test_differential.py`` makes
the same calls with both; it finds no other difference than these, and finds each of them.
"""

NOT_CARRIED = "no tracker-neutral form exists; said once and counted"
KEPT = "kept here, where the tool drops it"
TAKEN = "taken here, where the tool raises"
STATED = "zmqtrack's own facts about the run"
AS_TEXT = "also in the config, where W&B's page can filter by it"

DIFFERENCES: tuple[tuple[str, str, str], ...] = (
    ("tensorboard", "*: text run/*", STATED),
    ("tensorboard", "*: _hparams_/session_end_info", "the HPARAMS tab learns how each run ended"),
    ("tensorboard", "*: text param/*", "parameters can be read in the TEXT tab too"),
    (
        "tensorboard",
        "hparams: TIME: *",
        "the first trial of a writer is its own run, not one below",
    ),
    ("tensorboard", "hparams: _hparams_/session_start_info", "the same"),
    ("tensorboard", "hparams: scalars hparam/acc", "the same"),
    ("tensorboard", "not carried: *", NOT_CARRIED),
    ("tensorboard", "images: images boxes", "boxes are drawn by Pillow, one pixel otherwise"),
    ("tensorboard", "images: images nhw", TAKEN),
    ("tensorboard", "scalars: scalars ", "an empty tag is spelled %, which is said"),
    ("tensorboard", "scalars: scalars %", "the same"),
    ("torch", "histograms: histograms list", TAKEN),
    (
        "tensorboardX",
        "groups: *",
        "sub-runs are called as torch calls them: MAIN_TAG, not MAIN/TAG",
    ),
    ("tensorboardX", "images: images beyond", "floats beyond 1 are cut, as torch does"),
    ("tensorboardX", "life: scalars x", "a file that tensorboardX opens again hides the first"),
    ("tensorboardX", "scalars: scalars Größe*", "tags keep their characters, as with torch"),
    ("tensorboardX", "scalars: scalars [DFbdnt]*", TAKEN),
    ("mlflow", "*: tag zmqtrack.*", STATED),
    ("mlflow", "inner: tag description", "the description, as other trackers show it"),
    ("mlflow", "steps: metric float", "a step is an integer; MLflow's SQLite keeps a fraction"),
    ("mlflow", "steps: metric float time", "times are whole milliseconds"),
    ("mlflow", "steps: metric numpy", "a step of NumPy's is a number; MLflow's SQLite keeps bytes"),
    ("mlflow", "steps: metric te[nx]*", TAKEN),
    ("mlflow", "tags: tag gone", "delete_tag is not carried; said once and counted"),
    ("wandb", "*: config tag.*", AS_TEXT),
    ("wandb", "files: config artifact.*", "an artifact's description and metadata"),
    ("wandb", "*: name", "the display name is the site; the run's name is the group"),
    ("wandb", "config: config nan", "W&B's JSON has no NaN: the word"),
    ("wandb", "files: artifact *", "each file is an artifact, named after run and path"),
    ("wandb", "files: file weights.bin", "a saved file is an artifact"),
    ("wandb", "media: artifact run_table *", "a Table is a file of the run, not an artifact too"),
    ("wandb", "media: column array", "an array is a histogram"),
    ("wandb", "media: summary array*", "an array is a histogram"),
    ("wandb", "media: column float", "floats up to 1 are shares of white; W&B shows them black"),
    ("wandb", "numbers: column Decimal", "a number"),
    ("wandb", "numbers: summary Decimal", "a number"),
    ("wandb", "numbers: column nested*", "a dictionary is the columns KEY.INNER"),
    ("wandb", "numbers: column none", "None is not carried; said once and counted"),
    ("wandb", "numbers: rows", "the same columns"),
    ("wandb", "steps*: column *", KEPT),
    ("wandb", "steps*: rows", KEPT),
    ("wandb", "*: summary zmqtrack/summary.*", "how the adapter knows it again"),
    ("wandb", "summary: summary nested*", "a dictionary is the columns KEY.INNER"),
)
