"""Where a model's shape comes from: its own files, a grid's numbers, or a known name."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from kernels.checkpoints.configs import tokenizer_file
from kernels.shapes import KNOWN, ModelShape
from kernels.strategies import Parallel, Single
from orchestrator.case import Case
from orchestrator.checkout import local_path
from orchestrator.errors import InputError
from orchestrator.models import (
    checkpoint_shape,
    shape_of,
)

CHECKOUT = Path(__file__).resolve().parents[2]
META = {"dim": 64, "n_layers": 2, "n_heads": 4, "norm_eps": 1e-5, "vocab_size": -1}
HF = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 128, "vocab_size": 320,
}  # fmt: skip


def case(model: str = "mine", **values: Any) -> Case:
    single = Parallel(single=Single())
    return Case(model=model, label="single", strategy=single, gpus=1, **values)


def meta_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(META | changes))
    (folder / "consolidated.00.pth").write_bytes(b"")
    return folder


def hf_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(HF))
    (folder / "model-00001-of-00001.safetensors").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real tokenizer of 300 pieces."""
    from sentencepiece import SentencePieceTrainer

    words = (f"word{n} and number {n * n} in a row" for n in range(300))
    model = BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=words, model_writer=model, vocab_size=300, model_type="bpe",
        byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    file.write_bytes(model.getvalue())
    return file


def test_a_random_model_has_the_shape_it_says() -> None:
    shape = ModelShape(
        dim=8, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=8, vocab_size=8
    )
    assert shape_of(case(random=shape)) is shape


def test_a_bare_name_has_the_known_shape_and_a_misspelt_one_none() -> None:
    assert shape_of(case("llama-2-7b")) == KNOWN["llama-2-7b"]
    with pytest.raises(InputError, match="did you mean 'llama-2-7b'"):
        shape_of(case("lama-2-7b"))


def test_a_hugging_face_folder_says_its_shape(tmp_path: Path) -> None:
    shape = shape_of(case(path=str(hf_folder(tmp_path / "m"))))
    assert (shape.dim, shape.n_layers, shape.vocab_size) == (64, 3, 320)


@pytest.mark.parametrize("above", [False, True], ids=["beside", "one level up"])
def test_meta_leaves_the_vocabulary_to_the_tokenizer(
    tmp_path: Path, sentencepiece_file: Path, above: bool
) -> None:
    folder = meta_folder(tmp_path / "llama" / "7b")
    with pytest.raises(
        InputError, match=r"there is no tokenizer\.model in .* copy it there"
    ):
        checkpoint_shape(folder)
    place = folder.parent if above else folder
    (place / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
    assert checkpoint_shape(folder).vocab_size == 300
    assert tokenizer_file(folder) == place / "tokenizer.model"


def test_meta_that_says_its_vocabulary_needs_no_tokenizer(tmp_path: Path) -> None:
    assert (
        checkpoint_shape(meta_folder(tmp_path / "m", vocab_size=512)).vocab_size == 512
    )


@pytest.mark.parametrize("content", [b"IQ== 0\nIg== 1\n", b"\nnonsense", b""])
def test_a_tokenizer_that_cannot_tell_the_vocabulary_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    folder = meta_folder(tmp_path / "m")
    (folder / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.model"):
        checkpoint_shape(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"hidden_size": 64}', '{"hidden_size": "x"}']
)
@pytest.mark.parametrize("name", ["config.json", "params.json"])
def test_a_configuration_that_describes_no_llama_is_named(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=str(tmp_path)):
        checkpoint_shape(tmp_path)


def test_older_files_of_pytorch_are_weights_too(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m")
    shape = checkpoint_shape(folder)
    weights = folder / "model-00001-of-00001.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    assert checkpoint_shape(folder) == shape


def test_a_folder_without_weights_or_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        checkpoint_shape(tmp_path / "gone")
    with pytest.raises(InputError, match=r"neither config\.json .* nor params\.json"):
        checkpoint_shape(tmp_path)
    folder = hf_folder(tmp_path / "m")
    (folder / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        checkpoint_shape(folder)


def test_a_known_checkpoint_that_is_elsewhere_has_its_known_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    for path in ("/nowhere/llama", "$NOT_SET_HERE/llama"):
        assert shape_of(case("llama-2-13b", path=path)) == KNOWN["llama-2-13b"]
        with pytest.raises(InputError, match=r"no folder|not set here"):
            shape_of(case("mine", path=path))


def test_paths_expand_and_are_relative_to_the_checkout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WHERE", "/data")
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("$WHERE/llama") == Path("/data/llama")
    assert local_path("${WHERE}/llama") == Path("/data/llama")
    assert local_path("~/llama") == Path("/home/me/llama")
    assert local_path("results/models") == CHECKOUT / "results/models"


def test_a_changed_configuration_is_read_again(tmp_path: Path) -> None:
    import os

    folder = hf_folder(tmp_path / "m")
    assert checkpoint_shape(folder).n_layers == 3
    config = folder / "config.json"
    config.write_text(json.dumps(HF | {"num_hidden_layers": 5}))
    os.utime(config, ns=(10**18, 10**18))
    assert checkpoint_shape(folder).n_layers == 5
