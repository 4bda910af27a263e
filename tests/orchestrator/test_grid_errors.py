"""What is wrong with a grid: said with its place, the nearest name and the way out, all at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.case import Case
from orchestrator.errors import InputError
from orchestrator.grids.grid import load_grid

TOY = (
    "{dim: 64, n_layers: 4, n_heads: 8, n_kv_heads: 4, ffn_dim: 128, vocab_size: 256, "
    "max_seq_len: 512}"
)
HEAD = f"models: {{toy: {{random: {TOY}}}}}\n"
"""The first line of most grids here."""


def said(folder: Path, text: str, *, dry_run: bool = False) -> list[str]:
    file = folder / "grid.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_grid(file, dry_run=dry_run)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{file}:", "").splitlines()


def test_all_schema_errors_of_a_file_are_told_at_once_and_nothing_else(
    tmp_path: Path,
) -> None:
    text = f"""\
study: my study
models: {{toy: {{random: {TOY}}}, other: {{pth: /x}}}}
fixed: {{modle: toy, model: toy, dtype: fp32, new_tokens: [1, 2]}}
axes:
  strategy: [model, tenosr, {{pipeline: {{schedule: asinc}}}}]
  gpus: [1, 3.5, 8]
  gpus: [2]
exclude: [{{gpu: 1}}]
cluser: sol
"""
    lines = said(tmp_path, text)
    assert [line.split(":")[0] for line in lines] == list("12333556789")
    assert lines[1] == (
        "2:133: models.other: unknown key 'pth'; did you mean 'path'? valid: path, random, seed"
    )
    assert "unknown key 'modle'; did you mean 'model'?" in lines[2]
    assert lines[3].startswith(
        "3:40: fixed.dtype: must be one of float64, float32, bfloat16"
    )
    assert lines[4].endswith("got [1, 2]; several values belong under axes")
    assert lines[5].startswith(
        "5:21: axes.strategy[1]: unknown strategy 'tenosr'; did you mean 'tensor'?"
    )
    assert lines[6].endswith(
        "must be one of gpipe, async, got 'asinc'; did you mean 'async'?"
    )
    assert lines[7] == "6:13: axes.gpus[1]: must be a whole number, got 3.5"
    assert lines[8] == "7:3: duplicate key 'gpus', first in line 6; keep one"
    assert "exclude[0]: unknown key 'gpu'; did you mean 'gpus'?" in lines[9]
    assert "unknown key 'cluser'; did you mean 'cluster'?" in lines[10]


def test_an_unknown_cluster_is_told_with_the_impossible_cases(tmp_path: Path) -> None:
    text = HEAD + "cluster: lokal\naxes: {model: toy, strategy: model, gpus: 9}\n"
    lines = said(tmp_path, text)
    assert lines[0].startswith(
        "2:10: cluster: no cluster 'lokal'; did you mean 'local'?"
    )
    assert lines[0].endswith("or give a profile's path")
    assert "9 stages for 4 layers" in lines[1]


@pytest.mark.parametrize("text", ["", "[]", "just words", "# nothing"])
def test_what_is_no_mapping_is_one_mistake(tmp_path: Path, text: str) -> None:
    (line,) = said(tmp_path, text)
    assert "a grid is a mapping such as" in line


@pytest.mark.parametrize(
    ("wrong", "way_out"),
    [
        ("exclude: {strategy: single}", "write [ … ] around it"),
        ("fixed: {dtype: [float32]}", "several values belong under axes"),
    ],
)
def test_a_list_too_many_or_too_few_has_its_way_out(
    tmp_path: Path, wrong: str, way_out: str
) -> None:
    text = f"{HEAD}{wrong}\naxes: {{model: toy, strategy: single, gpus: 1}}\n"
    (line,) = said(tmp_path, text)
    assert line.endswith(way_out)


def test_a_profile_s_path_is_no_unknown_cluster(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    end = "axes: {model: toy, strategy: single, gpus: 1}\n"
    for name in ("mine.yaml", "~/clusters/mine"):
        file.write_text(f"{HEAD}cluster: {name}\n{end}")
        assert load_grid(file).cluster == name


def test_a_name_that_cannot_be_one_is_called_by_it_alone(tmp_path: Path) -> None:
    text = f"models: {{'<b>': {{random: {TOY}}}}}\n"
    text += "axes: {model: llama-2-7b, strategy: single, gpus: 1}\n"
    (line,) = said(tmp_path, text, dry_run=True)
    assert line.startswith("1:10: models.<b>: must be letters")


@pytest.mark.parametrize(
    "text",
    [
        "axes: {model: [], strategy: single, gpus: 1}",
        "fixed: {model: '<b>'}\naxes: {strategy: single, gpus: 1}",
        "fixed: {strategy: single, gpus: 1}\ninclude: [{model: 7}]",
    ],
)
def test_what_was_refused_is_not_missing_too(tmp_path: Path, text: str) -> None:
    assert len(said(tmp_path, HEAD + text)) == 1


def test_once_the_form_is_right_all_errors_of_meaning_are_told_at_once(
    tmp_path: Path,
) -> None:
    text = f"""\
models: {{toy: {{random: {TOY}}}, mine: {{path: {tmp_path}/gone}}}}
cluster: lokal
fixed: {{dtyp: float32, prompt_tokens: 600, gpus: 2}}
axes:
  model: [toy, mine, toi]
  strategy: [tensor, {{pipeline: {{split: [1, 2]}}}}]
  gpus: [1, 3]
"""
    (line,) = said(tmp_path, text)
    assert line.startswith("3:9: fixed: unknown key 'dtyp'; did you mean 'dtype'?")
    lines = said(tmp_path, text.replace("dtyp:", "dtype:"))
    expected = {
        f"models.mine.path: there is no folder {tmp_path}/gone": "1:",
        "cluster: no cluster 'lokal'; did you mean 'local'?": "2:10:",
        "gpus is fixed and an axis; keep one": "3:45:",
        "must fit the model's context: 600 + 128 for 512 of toy": "5:11:",
        "axes.model[2]: unknown model 'toi'; did you mean 'toy'?": "5:22:",
        "3 does not divide 8; take one of 1, 2, 4, 8 (toy on 3 GPUs)": "6:14:",
        "the degrees must multiply to gpus: pipeline 2 for gpus 1": "6:22:",
        "the degrees must multiply to gpus: pipeline 2 for gpus 3": "6:22:",
    }
    assert len(lines) == len(expected)
    for line, (what, place) in zip(lines, expected.items(), strict=True):
        assert line.startswith(place)
        assert what in line


def test_every_pattern_that_matches_no_case_is_told_at_once(tmp_path: Path) -> None:
    text = (
        f"{HEAD}axes: {{model: toy, strategy: model, gpus: [1, 2]}}\n"
        "exclude: [{gpus: 8}, {seed: 3}]\nsubsets: {quick: {dtype: float16}}\n"
    )
    assert [line.split(": ")[0:2] for line in said(tmp_path, text)] == [
        ["3:18", "exclude[0].gpus"],
        ["3:29", "exclude[1].seed"],
        ["4:26", "subsets.quick.dtype"],
    ]


def test_axes_that_cannot_be_zipped_unfold_to_no_case_that_nobody_asked_for(
    tmp_path: Path,
) -> None:
    text = (
        f"{HEAD}axes: {{model: toy, strategy: [single, tensor], gpus: [1, 2]}}\n"
        "zip: [[strategy, gpuss]]\nexclude: [{gpus: 8}]\n"
    )
    (line,) = said(tmp_path, text)
    assert line.startswith("3:18: zip[0]: no axis 'gpuss'")


def test_a_value_of_several_types_is_told_all_of_them_in_one_line(
    tmp_path: Path,
) -> None:
    text = (
        f"{HEAD}fixed: {{trace: 3}}\naxes: {{model: toy, strategy: model, gpus: 1}}\n"
    )
    assert said(tmp_path, text) == [
        "2:16: fixed.trace: must be true or false or one of flame, got 3"
    ]


@pytest.mark.parametrize(
    ("strategy", "gpus", "rule"),
    [
        (
            "tensor",
            3,
            "the tensor degree must divide the attention heads: 3 does not divide 8; "
            "take one of 1, 2, 4, 8 (toy on 3 GPUs)",
        ),
        (
            "model",
            5,
            "a stage needs at least one layer: 5 stages for 4 layers; take at most 4",
        ),
        ("{pipeline: {split: [2, 1]}}", 2, "split must give each of 2 stages"),
        ("single", 2, "single runs on one GPU, and gpus is 2"),
        ("{tensor: 2}", 4, "the degrees must multiply to gpus: tensor 2 for gpus 4"),
        (
            "{tensor: 4, pipeline: {}}",
            6,
            "the degrees must divide gpus: tensor 4 for gpus 6",
        ),
        ("zero-offload", 3, "3 does not divide 8"),
    ],
)
def test_an_impossible_combination_comes_with_the_exclude_that_mends_it(
    tmp_path: Path, strategy: str, gpus: int, rule: str
) -> None:
    text = f"{HEAD}axes:\n  model: [toy]\n  strategy: [data, {strategy}]\n  gpus: [{gpus}]\n"
    (line,) = said(tmp_path, text)
    assert line.startswith("4:20: axes.strategy[1]: ")
    assert rule in line
    pasted = line.partition("exclude: [")[2].removesuffix("]`")
    (tmp_path / "grid.yaml").write_text(text + f"exclude:\n  - {pasted}\n")
    (case,) = load_grid(tmp_path / "grid.yaml").cases
    assert case.label == "data"


def test_the_same_impossibility_in_many_cases_is_told_once(tmp_path: Path) -> None:
    text = (
        HEAD
        + "axes: {model: toy, strategy: tensor, gpus: [3], seed: [0, 1, 2], warmup: [0, 1]}\n"
    )
    assert len(said(tmp_path, text)) == 1


def test_an_impossible_include_is_taken_out_of_include(tmp_path: Path) -> None:
    text = HEAD + "include: [{model: toy, strategy: tensor, gpus: 3}]\n"
    (line,) = said(tmp_path, text)
    assert line.startswith("2:34: include[0].strategy: ")
    assert line.endswith("or take it out of include")


@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (
            "fixed: {prompt_tokens: 500, new_tokens: 13}",
            "2:41: fixed.new_tokens: prompt and new tokens must fit the model's context: 500 + 13 "
            "for 512 of toy",
        ),
        ("fixed: {prompt_tokens: null, new_tokens: 512}", "1 + 512 for 512"),
        (
            "fixed: {prompt_tokens: null}",
            "random prompts need prompt_tokens (toy): give a number",
        ),
        ("fixed: {stop_at_eos: true}", "no end token to stop at"),
        ("fixed: {temperature: -0.5}", "must be greater than or equal to 0, got -0.5"),
        ("fixed: {temperature: .inf}", "must be a finite number, got inf"),
        ("fixed: {batch_size: 0}", "must be greater than or equal to 1, got 0"),
        ("fixed: {seed: -1}", "must be greater than or equal to 0, got -1"),
        ("fixed: {gpus: 1}", "2:9: gpus is fixed and an axis; keep one"),
        (
            "prompts: random\nfixed: {prompts: random}",
            "2:1: prompts stands here and under fixed; keep one",
        ),
        ("fixed: {model: true}", "must be text, got true; quote it"),
        ("fixed: {stop_at_eos: 1}", "must be true or false, got 1"),
        ("fixed: {path: /x}", "unknown key 'path'"),
        ('prompts: "a\\nb"', "must be one line of text"),
        (
            "zip: [[gpus, seed]]",
            "2:14: zip[0]: no axis 'seed'; axes here: model, strategy, gpus",
        ),
        (
            "zip: [[gpus, strategy]]",
            "need equally many values: gpus has 3, strategy has 2",
        ),
        ("zip: [[gpus, gpus]]", "2:14: zip[0]: 'gpus' is zipped already; keep one"),
        ("zip: [[gpus]]", "must have at least 2"),
        (
            "exclude: [{gpus: 16}]",
            "2:18: exclude[0].gpus: no case has gpus 16; there is: 1, 2, 4",
        ),
        ("exclude: [{gpus: [2, 16]}]", "2:22: exclude[0].gpus[1]: no case has gpus 16"),
        (
            "exclude: [{strategy: single}]",
            "no case has strategy single; there is: model, tensor",
        ),
        ("exclude: [{}]", "an empty pattern matches every case"),
        ("exclude: [{model: toy}]", "no case is left: exclude takes all of them"),
        ("subsets: {quick: {gpus: 3}}", "2:25: subsets.quick.gpus: no case has gpus 3"),
        (
            "include: [{strategy: single}]",
            "include[0]: gpus is missing: give it here or under fixed",
        ),
        ("models: {}", "duplicate key 'models'"),
    ],
)
def test_a_mistake_is_named_with_its_place(
    tmp_path: Path, rest: str, expected: str
) -> None:
    axes = "axes: {model: toy, strategy: [model, tensor], gpus: [1, 2, 4]}\n"
    assert any(expected in line for line in said(tmp_path, f"{HEAD}{rest}\n{axes}"))


def test_an_exclude_whose_values_occur_but_never_together_is_refused(
    tmp_path: Path,
) -> None:
    text = (
        HEAD
        + "axes: {model: toy, strategy: model, gpus: [1, 2], seed: [1, 2]}\nzip: [[gpus, seed]]\n"
        "exclude: [{gpus: 1, seed: 2}]\n"
    )
    assert said(tmp_path, text) == [
        "4:11: exclude[0] matches no case: each value occurs, but not together; correct it or "
        "take it out"
    ]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (
            "{pipeline: {micro_batches: 8}}",
            "8 micro-batches for 4 in flight; take fewer or a larger batch_size",
        ),
        (
            "{pipeline: {in_flight: 6}}",
            "in_flight must be a multiple of batch_size: 6 and 4",
        ),
    ],
)
def test_micro_batches_and_sequences_in_flight_must_go_with_the_batch(
    tmp_path: Path, strategy: str, expected: str
) -> None:
    text = f"{HEAD}axes: {{model: toy, strategy: {strategy}, gpus: 2}}\n"
    (line,) = said(tmp_path, text)
    assert expected in line
    assert "batch_size: 4}]`" in line


def test_axes_that_a_case_needs_are_asked_for(tmp_path: Path) -> None:
    lines = said(tmp_path, HEAD + "axes: {model: toy}\n")
    assert lines == [
        "2:1: gpus is missing: give it under axes or fixed",
        "2:1: strategy is missing: give it under axes or fixed",
    ]


def test_an_unknown_model_is_told_the_nearest_one(tmp_path: Path) -> None:
    lines = said(
        tmp_path,
        HEAD + "axes: {model: [toi, llama-2-7bb], strategy: single, gpus: 1}\n",
    )
    assert lines[0].startswith(
        "2:16: axes.model[0]: unknown model 'toi'; did you mean 'toy'? valid: llama-2"
    )
    assert "did you mean 'llama-2-7b'?" in lines[1]


def test_a_known_shape_alone_runs_only_dry(tmp_path: Path) -> None:
    text = "axes: {model: llama-2-7b, strategy: single, gpus: 1}\n"
    (line,) = said(tmp_path, text)
    assert line.endswith(
        "llama-2-7b is a known shape, but no weights: add `llama-2-7b: {path: FOLDER}` or "
        "`llama-2-7b: {random: llama-2-7b}` under models, or only look with --dry-run"
    )
    (case,) = load_grid(tmp_path / "grid.yaml", dry_run=True).cases
    assert (case.model, case.path, case.random) == ("llama-2-7b", None, None)


def test_a_checkpoint_that_is_not_there_is_refused_unless_dry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    text = (
        f"models: {{llama-2-7b: {{path: {tmp_path}/gone}}, "
        "llama-2-13b: {path: $NOT_SET_HERE/x}}\n"
        "axes: {model: [llama-2-7b, llama-2-13b], strategy: model, gpus: 1}\n"
    )
    lines = said(tmp_path, text)
    assert f"models.llama-2-7b.path: there is no folder {tmp_path}/gone" in lines[0]
    assert "names a variable that is not set here" in lines[1]
    grid = load_grid(tmp_path / "grid.yaml", dry_run=True)
    assert len(grid.cases) == 2
    assert len(grid.notes) == 2
    mine = f"models: {{mine: {{path: {tmp_path}/gone}}}}\n"
    mine += "axes: {model: mine, strategy: model, gpus: 1}\n"
    assert "there is no folder" in said(tmp_path, mine, dry_run=True)[0]


def test_prompts_that_are_not_there_are_refused_unless_dry(tmp_path: Path) -> None:
    checkpoint = tmp_path / "mine"
    checkpoint.mkdir()
    config = '{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, '
    config += '"intermediate_size": 128, "vocab_size": 256}'
    (checkpoint / "config.json").write_text(config)
    (checkpoint / "model.safetensors").write_bytes(b"")
    text = f"models: {{mine: {{path: {checkpoint}}}}}\nprompts: {tmp_path}/gone.json\n"
    text += "axes: {model: mine, strategy: model, gpus: 1}\n"
    assert "mine has no tokenizer to read" in said(tmp_path, text)[0]
    (checkpoint / "tokenizer.json").write_text("{}")
    assert said(tmp_path, text) == [
        f"2:10: prompts: there is no file {tmp_path}/gone.json; correct the path"
    ]
    assert load_grid(tmp_path / "grid.yaml", dry_run=True).notes == [
        f"there is no file {tmp_path}/gone.json"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "",
            "1:1: a grid is a mapping such as `axes: {gpus: [1, 2]}`, and this is empty",
        ),
        ("- a\n", "and this is no mapping"),
        ("just text\n", "and this is no mapping"),
        ("axes: [gpus]\n", "axes: must be a mapping of keys to values, got ['gpus']"),
        ("axes:\n\tgpus: 1\n", "indent with spaces"),
    ],
)
def test_what_is_no_grid_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert any(expected in line for line in said(tmp_path, text))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("{}", "a model needs either path or random"),
        ("{path: x, random: llama-2-7b}", "a model needs either path or random"),
        ("{path: x, seed: 1}", "seed is for random weights"),
        ("{random: llama-2-7x}", "did you mean 'llama-2-7b'?"),
        ("{random: {dim: 64}}", "random.n_layers: is missing"),
        (
            "{random: {dim: 64, n_layers: 1, n_heads: 3, n_kv_heads: 1, ffn_dim: 8, "
            "vocab_size: 8}}",
            "dim must be a multiple of n_heads",
        ),
        (
            "{random: {dim: 64, n_layers: 1, n_heads: 4, n_kv_heads: 1, ffn_dim: 8, vocab_size: 8, "
            "rope_scaling: {factr: 2}}}",
            "unknown key 'factr'; did you mean 'factor'?",
        ),
    ],
)
def test_a_model_entry_must_say_where_its_weights_come_from(
    tmp_path: Path, entry: str, expected: str
) -> None:
    text = f"models:\n  toy: {entry}\naxes: {{model: toy, strategy: model, gpus: 1}}\n"
    lines = said(tmp_path, text)
    assert any(expected in line for line in lines)
    assert all(line.startswith("2:") for line in lines)


def cases_or_error(file: Path) -> list[Case] | str:
    try:
        return load_grid(file).cases
    except InputError as error:
        return str(error)


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 9), st.floats(), st.text(max_size=5),
    st.sampled_from(["toy", "model", "tensor", "pipeline", "zero-offload", "random", "gpus"]),
)  # fmt: skip
keys = st.sampled_from(
    ["study", "models", "toy", "random", "path", "prompts", "fixed", "axes", "zip", "include",
     "exclude", "subsets", "model", "strategy", "gpus", "seed", "dtype", "pipeline", "degree",
     "split", "zero-offload", "resident", "dim", "rope_scaling", "x"]
)  # fmt: skip
anything = st.recursive(
    leaves,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(keys, below, max_size=4)
    ),
    max_leaves=20,
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=150,
    deadline=None,
)
@given(st.dictionaries(keys, anything, max_size=5), st.booleans())
def test_whatever_a_file_holds_the_answer_is_cases_or_an_input_error(
    tmp_path: Path, data: dict[str, Any], on_top: bool
) -> None:
    right: dict[str, Any] = {
        "models": {"toy": {"random": yaml.safe_load(TOY)}},
        "axes": {"model": "toy", "strategy": ["tensor", "pipeline"], "gpus": [1, 2]},
    }
    file = tmp_path / "grid.yaml"
    file.write_text(
        yaml.safe_dump(right | data if on_top else data, allow_unicode=True)
    )
    answer = cases_or_error(file)
    assert answer
    assert isinstance(answer, list) or answer.startswith(f"{file}:")
