"""What one rank does for a case: load its part, warm up, generate under the stopwatch, report."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from jobs import gates
from jobs.environment import cpu_model, describe
from jobs.profiling.balance import settled
from jobs.progress import CHECKING, LOADING, MEASURING, WARMING, ProgressReporter
from jobs.prompts import RANDOM, batch_of
from jobs.timing import Stopwatch
from jobs.tokenizer import Tokenizer, load_tokenizer
from jobs.tracing.trace import Traced, repeat_traced
from kernels.engine import Engine
from kernels.generate import Batch, Generation
from kernels.memory import peak_resident_bytes
from kernels.parallelize import spread
from kernels.placement import stage_layers
from kernels.weights import Progress, RandomWeights, Weights, open_weights
from kernels.world import World
from kernels.zero_offload import OffloadEngine
from orchestrator.case import Case
from orchestrator.checkout import local_path
from orchestrator.record import RankFacts

Thing = TypeVar("Thing")


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything that a generation needs, ready."""

    case: Case
    world: World
    engine: Engine
    batch: Batch
    prompt_lengths: list[int]
    generation: Generation
    load_s: float


@dataclass(kw_only=True)
class Report:
    """What one rank tells rank 0."""

    facts: RankFacts
    times: list[list[float]] = field(default_factory=list)
    """Of each repeat, the seconds to each token."""
    digests: list[str] = field(default_factory=list)
    """Of each repeat's ids."""
    output_tokens: int = 0
    problems: list[str] = field(default_factory=list)
    """Why this rank's result cannot count."""
    environment: dict[str, Any] | None = None
    """Of the first rank of each machine."""
    traced: Traced | None = None


def prepare(
    case: Case, world: World, reporter: ProgressReporter, progress: Progress
) -> Work:
    """Load this rank's part of the model, and the prompts.

    Raises:
        ValueError: what the case names is not there, or does not fit.
    """
    reporter.enter(LOADING)
    weights = _weights(case)
    tokenizer = _tokenizer(case)
    batch, lengths = batch_of(case, tokenizer, weights.shape)
    generation = Generation(
        new_tokens=case.new_tokens,
        temperature=case.temperature,
        seed=case.seed,
        eos_ids=tokenizer.eos_ids if tokenizer else (),
        stop_at_eos=case.stop_at_eos,
    )
    context = batch.length + case.new_tokens
    strategy = settled(case, weights.shape, context, world, gatherer)
    dtype = getattr(torch, case.dtype)
    start = time.perf_counter()
    engine = spread(weights.shape, strategy, world, dtype, weights, progress)
    engine.synchronize()
    return Work(
        case=case,
        world=world,
        engine=engine,
        batch=batch,
        prompt_lengths=lengths,
        generation=generation,
        load_s=time.perf_counter() - start,
    )


def _weights(case: Case) -> Weights:
    if case.random is not None:
        dtype = getattr(torch, case.dtype)
        return RandomWeights(case.random, case.model_seed, dtype)
    if case.path is None:
        raise ValueError(
            f"{case.model} has neither a path nor a random shape; give it one in the grid"
        )
    return open_weights(local_path(case.path))


def _tokenizer(case: Case) -> Tokenizer | None:
    """The model's, where the case needs one: to read a file's prompts or to know the end."""
    if case.path is None or (case.prompts == RANDOM and not case.stop_at_eos):
        return None
    return load_tokenizer(local_path(case.path))


def measure(work: Work, reporter: ProgressReporter) -> Report:
    """Warm up, measure, then check what came out; every rank at once."""
    case, world = work.case, work.world
    stopwatch = Stopwatch(
        world.device, case.new_tokens, lambda: _meet(world), reporter.token
    )
    ids, times = [], []
    for run in range(case.warmup + case.repeats):
        reporter.enter(WARMING if run < case.warmup else MEASURING, run)
        ids_BN, seconds = stopwatch.time(
            lambda on_token: work.engine.generate(work.batch, work.generation, on_token)
        )
        if run >= case.warmup:
            ids.append(ids_BN)
            times.append(seconds)
    reporter.enter(CHECKING, case.warmup + case.repeats)
    report = Report(
        facts=rank_facts(work),
        times=times,
        digests=[gates.digest(each) for each in ids],
        output_tokens=gates.output_tokens(ids[-1]),
    )
    report.problems = _problems(work, report, ids)
    if world.local_rank == 0:
        report.environment = describe() | {"split": _split(work)} | _offload(work)
    if case.trace:
        report.traced = repeat_traced(
            work.engine, work.batch, work.generation, with_flame=case.trace == "flame"
        )
    return report


def _split(work: Work) -> list[int]:
    """Layers of each stage, as they came to be."""
    stages = stage_layers(work.engine.strategy, work.engine.shape.n_layers)
    return [len(layers) for layers in stages]


def _offload(work: Work) -> dict[str, Any]:
    """Where streamed weights wait and how they are read: the page cache would be memory."""
    engine = work.engine
    return {"weights_wait": engine.how} if isinstance(engine, OffloadEngine) else {}


def _meet(world: World) -> None:
    if world.size > 1:
        dist.barrier()


def _problems(work: Work, report: Report, ids: list[torch.Tensor]) -> list[str]:
    vocab_size = work.engine.shape.vocab_size
    had_rows = work.engine.placement.replica < work.batch.size
    part = gates.beginning(work.batch, vocab_size)
    problems = gates.check_logits(work.engine.logits(part), part)
    for ids_BN, seconds in zip(ids, report.times, strict=True):
        problems += gates.check_ids(ids_BN, work.case, vocab_size)
        problems += gates.check_times(seconds, work.case, had_rows)
    problems += gates.check_repeats(report.digests)
    return list(dict.fromkeys(problems))


def rank_facts(work: Work) -> RankFacts:
    """What this rank held, so far."""
    device = work.world.device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        peak = torch.cuda.max_memory_allocated(device)
        reserved = torch.cuda.max_memory_reserved(device)
    else:
        name, peak = cpu_model(), peak_resident_bytes()
        reserved = peak
    return RankFacts(
        rank=work.world.rank,
        host=socket.gethostname(),
        device=name,
        load_s=work.load_s,
        peak_memory_bytes=peak,
        peak_reserved_bytes=reserved,
        weight_bytes=work.engine.weight_bytes,
    )


def gatherer(world: World) -> Callable[[Thing], list[Thing]]:
    """A function that gives every rank the things of all, in rank order.

    Made by all ranks at once. Over the CPU, so that a full GPU does not matter.
    """
    if world.size == 1:
        return lambda thing: [thing]
    group = dist.new_group(backend="gloo")

    def gather(thing: Thing) -> list[Thing]:
        things: list[Any] = [None] * world.size
        dist.all_gather_object(things, thing, group=group)
        return things

    return gather
