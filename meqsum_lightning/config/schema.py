"""The shape of every configuration: types, ranges and units of each key.

Defaults live in `conf/` (one place), never here. Checks that join several keys are in `checks.py`;
turning a composed dictionary into one of these models is `validate.py`.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from meqsum_lightning.config.adapter import MAX_RANK, checked_multiple

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Probability = Annotated[float, Field(gt=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Limit = Annotated[int, Field(ge=1)] | None
RankMultiple = Annotated[str, AfterValidator(checked_multiple)]
LayerPart = Literal["first_half", "last_half", "first_third", "middle_third", "last_third"]


class Section(BaseModel):
    """A group of keys: unknown keys are refused, `4.0`, `"4"` and `true` are not integers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Component(BaseModel):
    """An object built from `_target_` and arguments (a callback, a logger, an optimizer)."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    target: str = Field(alias="_target_", description="import path of the class")

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the class."""
        return dict(self.model_extra or {})


class DataConfig(Section):
    """Where rows come from, how they are split, tokenized and batched."""

    source: Literal["demo", "meqsum", "files"] = Field(description="kind of source")
    path: str | None = Field(description="one file to be split (csv, json, jsonl, parquet, xlsx)")
    train_path: str | None = Field(description="file of training rows; needs the other two")
    val_path: str | None = Field(description="file of validation rows")
    test_path: str | None = Field(description="file of test rows")
    hub_id: str | None = Field(description="data set on the Hugging Face Hub")
    hub_revision: str | None = Field(description="commit, tag or branch of the data set")
    question_column: str | None = Field(description="column of questions; null: known names")
    summary_column: str | None = Field(description="column of summaries; null: known names")
    id_column: str | None = Field(description="column of row ids; null: `id` or ids from content")
    sheet: str | None = Field(description="sheet of an xlsx file; null: the first")
    clean: list[Literal["markers", "escapes", "blanks"]] = Field(description="cleaning steps")
    prompt: str = Field(description="instruction put before each question")
    split: str | list[int] | list[float] | None = Field(
        description="`given`, `800_100_100`, `400_100_500`, `folds`, three fractions or counts, "
        "or a json file of ids; null: given for three files, else [0.8, 0.1, 0.1]"
    )
    split_seed: Seed = Field(description="seed of the split alone")
    folds: Annotated[int, Field(ge=2, le=100)] = Field(description="number of folds")
    fold: Annotated[int, Field(ge=0)] = Field(description="fold that is tested, from 0")
    val_fraction: Probability = Field(description="share of the non-test rows that validate a fold")
    near_duplicate_threshold: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        description="Jaccard similarity of question word n-grams from which rows stay together"
    )
    max_source_length: Annotated[int, Field(ge=8, le=16384)] = Field(
        description="tokens, with prompt and end token"
    )
    max_target_length: Annotated[int, Field(ge=4, le=4096)] = Field(
        description="tokens, with end token"
    )
    global_batch_size: Count = Field(description="rows per optimizer step, over all processes")
    micro_batch_size: Count = Field(description="rows per forward pass of one process")
    eval_batch_size: Count = Field(description="rows per batch in validation, test and prediction")
    workers: Annotated[int, Field(ge=0, le=128)] = Field(
        description="data loader processes; 0: none"
    )
    cache: bool = Field(description="keep tokenized rows on disk, keyed by fingerprint")


class ModelConfig(Section):
    """The backbone: what is loaded, in which type, and how it is run."""

    name: str = Field(description="short name for tables")
    backbone: str = Field(description="`embedded`, a local folder, or a Hub id")
    revision: str | None = Field(description="commit, tag or branch on the Hub")
    weights: Literal["pretrained", "random"] = Field(description="load weights, or draw them")
    shape: str | None = Field(description="built-in shape that `weights=random` uses")
    tokenizer: str | None = Field(description="folder or Hub id; null: the backbone's own")
    dtype: Literal["fp32", "bf16"] = Field(description="type in which frozen weights are held")
    dropout: Fraction | None = Field(description="the backbone's own dropout; null: as published")
    activation_checkpointing: bool = Field(description="recompute activations: less memory, slower")


class AdapterConfig(Section):
    """How the backbone is adapted."""

    method: Literal["lora", "dora", "rslora", "pissa", "full", "none"]
    r: Annotated[int, Field(ge=1, le=MAX_RANK)] | None = Field(description="rank")
    budget: Count | Probability | None = Field(
        description="trained parameters that the adapter may have, a count or a share of the "
        "backbone's; the rank is the largest one within it",
        json_schema_extra={
            "expected": "a count of parameters >= 1, a share of the backbone's between 0 and 1 "
            "such as 0.01, or null"
        },
    )
    alpha: Annotated[float, Field(gt=0)] | RankMultiple | None = Field(
        description="scale numerator, or a multiple of the rank such as `2r`; null: 2 r",
        json_schema_extra={"expected": "a number > 0, or a multiple of the rank such as 2r"},
    )
    dropout: Fraction | None = Field(description="dropout of the adapter's input")
    target_modules: str | list[str] | None = Field(
        description="preset (qv, qkv, attention, ffn, all), a module name, or a list of them"
    )
    scope: Literal["everywhere", "encoder", "decoder", "cross"] | None
    layers: LayerPart | list[Annotated[int, Field(ge=0)]] | None = Field(
        description="block numbers, or a part of each side's blocks; null: all",
        json_schema_extra={
            "expected": f"{', '.join(get_args(LayerPart))}, block numbers such as [0,1], or null"
        },
    )


class OptimConfig(Section):
    """Optimizer, schedule and loss."""

    optimizer: Component = Field(description="optimizer class and its own arguments")
    lr: Annotated[float, Field(gt=0, le=100)] = Field(description="peak learning rate")
    lora_plus_ratio: Annotated[float, Field(ge=1)] | None = Field(
        description="LoRA+: learning rate of B over that of A; null: one rate"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(description="decoupled weight decay")
    schedule: Literal["linear", "cosine", "constant"] = Field(description="shape after warm-up")
    warmup: Fraction = Field(description="fraction of all optimizer steps")
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(description="largest gradient norm")
    label_smoothing: Fraction = Field(description="share of probability spread over the vocabulary")


class TrainerConfig(Section):
    """What the Lightning trainer is told."""

    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Count = Field(description="devices of one node")
    num_nodes: Count
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = Field(
        description="auto: bf16-mixed where the device has it, else 32-true"
    )
    max_epochs: Count
    max_steps: Limit = Field(description="stop after so many optimizer steps; null: no limit")
    check_val_every_n_epoch: Count
    log_every_n_steps: Count
    threads: Limit = Field(description="CPU threads of this process; null: torch's choice")
    deterministic: bool = Field(description="reproducible operations where there are such")
    progress: Literal["auto", "bar", "plain", "none"]
    limit_train_batches: Limit = Field(description="steps per epoch, for debugging")
    limit_val_batches: Limit = Field(description="validation batches, for debugging")
    limit_test_batches: Limit = Field(description="test batches, for debugging")
    overfit_rows: Limit = Field(description="train and validate on the same first rows")
    profiler: Literal["simple", "advanced", "pytorch"] | None


class CheckpointConfig(Section):
    """Which epoch is best, when training stops, and what is kept."""

    monitor: Literal["val/rouge1", "val/rouge2", "val/rougeL", "val/rougeLsum", "val/loss"]
    patience: Limit = Field(description="validations without improvement before stopping")
    min_delta: Annotated[float, Field(ge=0)] = Field(description="smallest change that counts")
    every_n_steps: Limit = Field(description="also save inside an epoch, every so many steps")
    prune: bool = Field(description="delete the checkpoints of a completed run")


class GenerationConfig(Section):
    """How summaries are decoded."""

    max_new_tokens: Annotated[int, Field(ge=1, le=4096)]
    val_num_beams: Annotated[int, Field(ge=1, le=64)] = Field(description="1: greedy")
    test_num_beams: Annotated[int, Field(ge=1, le=64)]
    length_penalty: float
    no_repeat_ngram_size: Annotated[int, Field(ge=0)]


class MetricsConfig(Section):
    """The ROUGE protocol and its intervals."""

    stemmer: bool = Field(description="Porter stemmer, as published MeQSum scores use")
    bootstrap_resamples: Annotated[int, Field(ge=100, le=1_000_000)]
    confidence: Probability = Field(description="coverage of the intervals")


class SweepConfig(Section):
    """How the jobs of a sweep (`-m`) are run, and where."""

    dir: str | None = Field(description="root of the sweep; one that exists is gone on with")
    resume: Literal["last"] | None = Field(description="go on with the newest sweep here")
    parallel: Count | Literal["auto"] = Field(description="jobs at a time")
    fail_fast: bool = Field(description="stop at the first job that fails")
    keep: Literal["best", "all"] = Field(description="whose checkpoints stay when jobs are done")


class SharedConfig(Section):
    """Keys that every command on a model has."""

    seed: Seed = Field(description="initialisation, data order and dropout; never the split")
    output_dir: str | None = Field(description="directory to write; refused when not empty")
    data: DataConfig
    model: ModelConfig
    adapter: AdapterConfig
    trainer: TrainerConfig
    generation: GenerationConfig
    metrics: MetricsConfig


class TrainConfig(SharedConfig):
    """`meqsum train` and `meqsum plan`."""

    name: str = Field(description="what this run is called")
    test: bool = Field(description="score the best checkpoint on the test rows at the end")
    test_base: bool = Field(description="also score the backbone without adapter")
    resume: str | None = Field(description="run directory to go on with")
    rerun: str | None = Field(description="run directory whose config starts afresh")
    optim: OptimConfig
    checkpoint: CheckpointConfig
    logger: dict[str, Component]
    callbacks: dict[str, Component]
    sweep: SweepConfig


class EvaluateConfig(SharedConfig):
    """`meqsum evaluate`."""

    run: str | None = Field(description="run directory or PEFT folder")
    split: Literal["train", "val", "test"]
    input: str | None = Field(description="file to score instead of a split")
    name: str | None = Field(description="folder under `DIR/evaluations`; null: from split or file")


class PredictConfig(SharedConfig):
    """`meqsum predict`."""

    run: str | None = Field(description="run directory or PEFT folder")
    input: str | None = Field(description="file of questions, or `-`")
    output: str | None = Field(
        description="file to write (csv, json, jsonl, parquet, xlsx), or `-`"
    )


class DataCommandConfig(Section):
    """`meqsum data audit`: rows and tokenizer, no weights."""

    data: DataConfig
    model: ModelConfig
    output: str | None = Field(description="json file to write the audit to")


SCHEMAS: dict[str, type[Section]] = {
    "train": TrainConfig,
    "plan": TrainConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "data": DataCommandConfig,
}
