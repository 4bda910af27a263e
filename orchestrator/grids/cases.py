"""Turn a point of the grid into a Case, or say why there can be none.

Every rule that joins several fields is here: the model must be there, the strategy must fit
it and the GPUs, prompts and new tokens its context. Each problem is noted with the way out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from kernels.checkpoints.configs import tokenizer_file
from kernels.placement import impossible
from kernels.shapes import KNOWN, ModelShape
from kernels.strategies import Strategy, StrategyError
from orchestrator.case import Case
from orchestrator.checkout import local_path
from orchestrator.errors import InputError, nearest
from orchestrator.grids.points import Point
from orchestrator.grids.schema import FIELDS, GridFile, ModelEntry
from orchestrator.grids.strategies import label_of, resolve
from orchestrator.models import (
    checkpoint_shape,
    is_here,
)
from orchestrator.schema_errors import dotted
from orchestrator.yaml_document import Document

ALPACA = "jobs/prompts/alpaca-sample.json"
RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class _Model:
    source: dict[str, Any]
    """The fields of a case that say where the weights come from."""
    shape: ModelShape
    has_tokenizer: bool


class CaseMaker:
    """Makes the cases of one grid; each model and prompts file is looked at once."""

    def __init__(self, grid: GridFile, document: Document, *, dry_run: bool) -> None:
        self._grid = grid
        self._document = document
        self._dry_run = dry_run
        self._models: dict[str, _Model | None] = {}
        self._prompts: dict[str, bool] = {}
        self._resolved: dict[tuple[int, int, int], Strategy | None] = {}
        self._fits: dict[tuple[int, Strategy], list[str]] = {}
        self.notes: dict[str, None] = {}
        """What a person should know, though it is no error."""

    def case(self, point: Point) -> Case | None:
        """Return the point's case, or None after noting in the document why it cannot be."""
        model = self._model(point)
        strategy = self._strategy(point)
        if model is None or strategy is None:
            return None
        sound = self._fits_model(point, model, strategy)
        sound &= self._fits_batch(point, strategy)
        sound &= self._fits_context(point, model)
        prompts = self._prompts_of(point, model)
        if not sound or prompts is None:
            return None
        values = {name: point[name].value for name in FIELDS if name in point}
        label = label_of(values["strategy"])
        own = {"label": label, "prompts": prompts, "strategy": strategy}
        return Case(**(values | own | model.source))

    def _refuse(self, point: Point, at: str, rule: str, names: Iterable[str]) -> None:
        """Note which rule field `at` breaks; `names` are the fields to exclude it by."""
        if any(value.loc[:1] == ("include",) for value in point.values()):
            out = "or take it out of include"
        else:
            fields = {name: point[name].raw for name in FIELDS if name in names}
            flow = yaml.safe_dump(
                fields, default_flow_style=True, sort_keys=False, width=10**6
            )
            out = f"or leave it out with `exclude: [{flow.strip()}]`"
        where = dotted(point[at].loc)
        self._document.problem(point[at].loc, f"{where}: {rule}, {out}")

    def _model(self, point: Point) -> _Model | None:
        name = point["model"].value
        if name not in self._models:
            try:
                self._models[name] = self._find_model(name)
            except InputError as error:
                self._models[name] = None
                declared = ("models", name, "path")
                loc = declared if name in self._grid.models else point["model"].loc
                self._document.problem(loc, f"{dotted(loc)}: {error}")
        return self._models[name]

    def _find_model(self, name: str) -> _Model:
        entry = self._grid.models.get(name)
        if entry is not None:
            return self._declared(name, entry)
        if name not in KNOWN:
            raise InputError(
                f"unknown model {name!r}; {nearest(name, {*self._grid.models, *KNOWN})}"
            )
        if not self._dry_run:
            raise InputError(
                f"{name} is a known shape, but no weights: add `{name}: {{path: FOLDER}}` or "
                f"`{name}: {{random: {name}}}` under models, or only look with --dry-run"
            )
        return _Model(source={}, shape=KNOWN[name], has_tokenizer=True)

    def _declared(self, name: str, entry: ModelEntry) -> _Model:
        if entry.random is not None:
            source = {"random": entry.random, "model_seed": entry.seed}
            return _Model(source=source, shape=entry.random, has_tokenizer=False)
        assert entry.path is not None
        from_path = {"path": entry.path}
        if self._dry_run and name in KNOWN and not is_here(entry.path):
            self.notes[
                f"{name}: no checkpoint {entry.path} here; its shape is known"
            ] = None
            return _Model(source=from_path, shape=KNOWN[name], has_tokenizer=True)
        folder = local_path(entry.path)
        shape = checkpoint_shape(folder)
        has_tokenizer = tokenizer_file(folder) is not None
        return _Model(source=from_path, shape=shape, has_tokenizer=has_tokenizer)

    def _strategy(self, point: Point) -> Strategy | None:
        written, gpus = point["strategy"].value, point["gpus"].value
        batch_size = point["batch_size"].value
        key = (id(written), gpus, batch_size)
        if key not in self._resolved:
            try:
                self._resolved[key] = resolve(written, gpus, batch_size)
            except StrategyError as error:
                self._resolved[key] = None
                self._refuse(point, "strategy", str(error), ("strategy", "gpus"))
        return self._resolved[key]

    def _fits_model(self, point: Point, model: _Model, strategy: Strategy) -> bool:
        key = (id(model), strategy)
        if key not in self._fits:
            self._fits[key] = impossible(strategy, model.shape)
        for reason in self._fits[key]:
            rule = f"{reason} ({point['model'].value} on {point['gpus'].value} GPUs)"
            self._refuse(point, "strategy", rule, ("model", "strategy", "gpus"))
        return not self._fits[key]

    def _fits_batch(self, point: Point, strategy: Strategy) -> bool:
        batch_size = point["batch_size"].value
        rows = strategy.in_flight or batch_size
        rules = []
        if rows % batch_size:
            rules.append(
                f"in_flight must be a multiple of batch_size: {rows} and {batch_size}"
            )
        if strategy.micro_batches > rows:
            rules.append(
                f"a micro-batch needs at least one sequence: {strategy.micro_batches} "
                f"micro-batches for {rows} in flight; take fewer or a larger batch_size"
            )
        for rule in rules:
            self._refuse(point, "strategy", rule, ("strategy", "batch_size"))
        return not rules

    def _fits_context(self, point: Point, model: _Model) -> bool:
        prompt, new = point["prompt_tokens"].value, point["new_tokens"].value
        longest = model.shape.max_seq_len
        if (prompt or 1) + new <= longest:
            return True
        self._refuse(
            point,
            "new_tokens" if point["new_tokens"].loc else "model",
            f"prompt and new tokens must fit the model's context: {prompt or 1} + {new} for "
            f"{longest} of {point['model'].value}; take fewer",
            ("model", "prompt_tokens", "new_tokens"),
        )
        return False

    def _prompts_of(self, point: Point, model: _Model) -> str | None:
        given = point.get("prompts")
        name = point["model"].value
        prompts: str = given.value if given else ALPACA
        if not model.has_tokenizer and prompts != RANDOM:
            if given and "path" in model.source:
                rule = f"{name} has no tokenizer to read {prompts} with: copy it there"
                self._refuse(point, "prompts", rule, ("model", "prompts"))
                return None
            if given:
                self.notes[f"{name} has no tokenizer: its prompts are random ids"] = (
                    None
                )
            prompts = RANDOM
        if prompts == RANDOM and point["prompt_tokens"].value is None:
            rule = f"random prompts need prompt_tokens ({name}): give a number"
            self._refuse(point, "prompt_tokens", rule, ("model", "prompt_tokens"))
            return None
        if point["stop_at_eos"].value and not model.has_tokenizer:
            rule = f"{name} has no tokenizer, so no end token to stop at: turn it off"
            self._refuse(point, "stop_at_eos", rule, ("model", "stop_at_eos"))
            return None
        return prompts if self._are_there(point, prompts) else None

    def _are_there(self, point: Point, prompts: str) -> bool:
        if prompts == RANDOM or prompts in self._prompts:
            return self._prompts.get(prompts, True)
        try:
            is_there = local_path(prompts).is_file()
            what = f"there is no file {local_path(prompts)}"
        except InputError as error:
            is_there, what = False, str(error)
        if not is_there and self._dry_run:
            self.notes[what] = None
        elif not is_there:
            loc = point["prompts"].loc if "prompts" in point else ()
            self._document.problem(loc, f"prompts: {what}; correct the path")
        self._prompts[prompts] = is_there or self._dry_run
        return self._prompts[prompts]
