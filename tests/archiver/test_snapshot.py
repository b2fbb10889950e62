import json

import pytest

from archiver import snapshot
from archiver.errors import Refused
from tests.archiver.conftest import write_safetensors


def refusal(folder):
    with pytest.raises(Refused) as caught:
        snapshot.choose(folder)
    return caught.value.problems


def test_keeps_the_tree_and_sorts_it(model):
    chosen = snapshot.choose(model)
    assert list(chosen.files) == sorted(chosen.files)
    assert {"config.json", "1_Pooling/config.json", "model.safetensors"} <= set(chosen.files)
    assert chosen.left_out == {}
    assert chosen.size == sum(path.stat().st_size for path in model.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pytorch_model.bin", "a pickle"),
        ("x.pt", "a pickle"),
        ("x.pth", "a pickle"),
        ("x.ckpt", "a pickle"),
        ("x.PKL", "a pickle"),
        ("modeling_x.py", "code"),
        ("tf_model.h5", "weights in another format"),
        ("flax_model.msgpack", "weights in another format"),
        (".gitattributes", "hidden"),
        ("picture.png", "not a model file"),
    ],
)
def test_leaves_out_and_says_why(model, name, reason):
    (model / name).write_bytes(b"x")
    assert snapshot.choose(model).left_out == {name: reason}


@pytest.mark.parametrize("name", ["onnx", "openvino", ".git", ".cache", "checkpoint-500", "__pycache__"])
def test_leaves_out_whole_directories(model, name):
    write_safetensors(model / name / "model.safetensors", 10)
    chosen = snapshot.choose(model)
    assert list(chosen.left_out) == [name + "/"]
    assert not any(file.startswith(name) for file in chosen.files)


@pytest.mark.parametrize(
    "name",
    [
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "bpe.codes",
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "a.tiktoken",
    ],
)
def test_keeps_what_a_tokenizer_or_a_lawyer_reads(model, name):
    (model / name).write_bytes(b"x" * 2000)
    assert name in snapshot.choose(model).files


def test_refuses_weights_that_are_only_pickles(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"x")
    (problem,) = refusal(model)
    assert problem.startswith("pytorch_model.bin: the weights exist only as a pickle")


def test_refuses_a_layer_that_is_only_a_pickle(model):
    # It would load without the layer, and answer wrongly.
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "config.json").write_text("{}")
    (model / "2_Dense" / "pytorch_model.bin").write_bytes(b"x")
    (problem,) = refusal(model)
    assert problem.startswith("2_Dense/pytorch_model.bin: ")


def test_refuses_a_model_without_weights_though_training_left_pickles(model):
    (model / "model.safetensors").unlink()
    (model / "training_args.bin").write_bytes(b"x")
    assert any(problem.startswith("model.safetensors: is missing") for problem in refusal(model))


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("config.json", {"auto_map": {"AutoModel": "modeling_x.X"}}),
        ("config.json", {"model_type": "mine", "auto_map": {"AutoModel": "modeling_x.X"}}),
        ("config.json", {"model_type": "../auto", "auto_map": {"AutoModel": "modeling_x.X"}}),
        ("config.json", {"model_type": "phi3", "text_config": {"auto_map": {"AutoModel": "modeling_x.X"}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}),
        ("config.json", {"text_config": {"auto_map": {"AutoModel": "modeling_x.X"}}}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "x.X"}}),
        ("modules.json", [{"idx": 0, "type": "custom_st.Transformer"}]),
    ],
)
def test_refuses_remote_code(model, name, document):
    (model / name).write_text(json.dumps(document))
    (problem,) = refusal(model)
    assert problem.startswith(f"{name}: ")
    assert "never run" in problem


def test_code_that_transformers_has_a_class_for_is_left_out(model):
    """As Phi-3's: its repository has both."""
    document = {"model_type": "phi3", "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}
    (model / "config.json").write_text(json.dumps(document))
    (model / "modeling_phi3.py").write_text("")
    chosen = snapshot.choose(model)
    assert "config.json" in chosen.files and "modeling_phi3.py" in chosen.left_out


def test_a_vocabulary_may_hold_the_word_auto_map(model):
    (model / "vocab.json").write_text('{"auto_map": 17}')
    assert "vocab.json" in snapshot.choose(model).files


def test_follows_links_to_files_as_a_hub_cache_has_them(model, tmp_path):
    blob = tmp_path / "blobs" / "abc"
    blob.parent.mkdir()
    (model / "tokenizer.json").rename(blob)
    (model / "tokenizer.json").symlink_to(blob)
    assert snapshot.choose(model).files["tokenizer.json"] == 2


def test_refuses_a_dangling_link_and_a_linked_directory(model, tmp_path):
    (model / "vocab.txt").symlink_to(tmp_path / "gone")
    (tmp_path / "elsewhere").mkdir()
    (model / "inner").symlink_to(tmp_path / "elsewhere")
    problems = sorted(refusal(model))
    assert problems[0].startswith("inner: is a link to a directory")
    assert problems[1].startswith("vocab.txt: is a link to ")


def test_refuses_a_truncated_file_a_longer_one_and_one_that_is_none(model):
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    for content, word in [
        (whole[:-1], "truncated"),
        (whole + b"x", "longer"),
        (b"", "not a whole safetensors file"),
        (b"\xff" * 2000, "not a whole safetensors file"),
        ((4).to_bytes(8, "little") + b"nope" + whole, "header cannot be read"),
    ]:
        weights.write_bytes(content)
        (problem,) = refusal(model)
        assert problem.startswith("model.safetensors: ")
        assert word in problem


def test_refuses_a_git_lfs_pointer(model):
    (model / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    )
    (problem,) = refusal(model)
    assert "Git LFS pointer" in problem


def test_refuses_an_index_whose_shard_is_missing(model):
    (model / "model.safetensors").unlink()
    write_safetensors(model / "model-1.safetensors", 10)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(model) == ("model.safetensors.index.json: names model-2.safetensors, which is not there",)
    write_safetensors(model / "model-2.safetensors", 10)
    assert "model-2.safetensors" in snapshot.choose(model).files


def test_says_everything_at_once(model):
    (model / "config.json").write_text("{")
    (model / "model.safetensors").write_bytes(b"")
    assert len(refusal(model)) == 2


def test_another_models_tokenizer_takes_the_place_of_its_own(model, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (model / "tekken.json").write_text("{}")
    (model / "vocab.txt").write_text("its own")
    for name in ("tokenizer.json", "chat_template.jinja", "tekken.json", "config.json"):
        (other / name).write_text("{ }")
    chosen = snapshot.choose(model, other)
    assert chosen.sources["tokenizer.json"] == other / "tokenizer.json"
    assert chosen.files["chat_template.jinja"] == 3
    assert chosen.sources["config.json"] == model / "config.json"
    assert not {"tekken.json", "vocab.txt", "tokenizer_config.json"} & chosen.files.keys()
    assert chosen.left_out.keys() == {"tekken.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert not chosen.is_root and snapshot.choose(model).is_root


def test_a_tokenizer_that_is_none(model, tmp_path):
    (tmp_path / "tokenizer_config.json").symlink_to("nowhere")
    with pytest.raises(Refused) as caught:
        snapshot.choose(model, tmp_path)
    assert len(caught.value.problems) == 2 and "holds no tokenizer.json" in caught.value.problems[1]


def test_mistrals_own_copy_of_the_weights_is_left_out(model):
    write_safetensors(model / "consolidated.safetensors", 10)
    assert snapshot.choose(model).left_out == {"consolidated.safetensors": "weights in another format"}
