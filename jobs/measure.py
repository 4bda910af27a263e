"""What one rank does for a case: load its part, warm up, generate under the stopwatch, report."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from jobs import gates
from jobs.environment import cpu_model, describe
from jobs.profiling.balance import with_profiled_split
from jobs.progress import CHECKING, LOADING, MEASURING, WARMING, ProgressReporter
from jobs.prompts import RANDOM, batch_of
from jobs.timing import Stopwatch
from jobs.tokenizer import Tokenizer, load_tokenizer
from jobs.tracing.trace import Traced, repeat_traced
from kernels.engine import Engine, EngineFacts
from kernels.generate import Batch, Generation
from kernels.memory import peak_resident_bytes
from kernels.parallelize import parallelize
from kernels.shapes import ModelShape
from kernels.weights import Progress, RandomWeights, Weights, open_weights
from kernels.world import World
from orchestrator.case import Case
from orchestrator.checkout import local_path
from orchestrator.environment import Environment
from orchestrator.record import RankFacts


@dataclass(frozen=True, kw_only=True)
class Work:
    """Everything that a generation needs, ready."""

    case: Case
    world: World
    engine: Engine
    shape: ModelShape
    batch: Batch
    prompt_lengths: list[int]
    generation: Generation
    load_s: float
    repeat_traced: Callable[[], Traced]
    """Generate once more and note which rank computes when."""


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
    environment: Environment | None = None
    """From the first rank of each machine."""
    split: list[int] = field(default_factory=list)
    weights_wait: str | None = None
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
    strategy = case.strategy
    if strategy.needs_profile:
        context = batch.length + case.new_tokens
        strategy = with_profiled_split(case, weights.shape, context, world)
    dtype = getattr(torch, case.dtype)
    start = time.perf_counter()
    engine = parallelize(weights.shape, strategy, world, dtype, weights, progress)
    load_s = time.perf_counter() - start
    return Work(
        case=case,
        world=world,
        engine=engine,
        shape=weights.shape,
        batch=batch,
        prompt_lengths=lengths,
        generation=generation,
        load_s=load_s,
        repeat_traced=lambda: repeat_traced(
            engine, batch, generation, with_flame=case.trace == "flame"
        ),
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
    """Load the model's tokenizer if the case needs one: for a file's prompts or the end token."""
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
    facts = work.engine.facts(work.batch)
    report.problems = _problems(work, report, ids, facts)
    if world.local_rank == 0:
        report.environment = describe()
    report.split, report.weights_wait = list(facts.split), facts.weights_wait
    if case.trace:
        report.traced = work.repeat_traced()
    return report


def _meet(world: World) -> None:
    if world.size > 1:
        dist.barrier()


def _problems(
    work: Work, report: Report, ids: list[torch.Tensor], facts: EngineFacts
) -> list[str]:
    problems = [*facts.problems]
    for ids_BN, seconds in zip(ids, report.times, strict=True):
        problems += gates.check_ids(ids_BN, work.case, work.shape.vocab_size)
        problems += gates.check_times(seconds, work.case, facts.has_rows)
    problems += gates.check_repeats(report.digests)
    return list(dict.fromkeys(problems))


def rank_facts(work: Work) -> RankFacts:
    """Return what this rank held, so far."""
    device = work.world.device
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, int(properties.total_memory)
        peak = torch.cuda.max_memory_allocated(device)
        reserved = torch.cuda.max_memory_reserved(device)
    else:
        name, memory, peak = cpu_model(), None, peak_resident_bytes()
        reserved = peak
    return RankFacts(
        rank=work.world.rank,
        host=socket.gethostname(),
        device=name,
        device_kind="cuda" if device.type == "cuda" else "cpu",
        device_memory_bytes=memory,
        load_s=work.load_s,
        peak_memory_bytes=peak,
        peak_reserved_bytes=reserved,
        weight_bytes=work.engine.weight_bytes,
    )
