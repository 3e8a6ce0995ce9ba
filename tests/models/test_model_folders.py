"""Model folders as people have them: the right weights, or one line that says what is wrong."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from families import small_model
from folders import ROWS, edit, make, rename
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM, BertConfig

from r2m_cli.errors import UserError
from r2m_cli.models.loading import check_kind, load_causal_lm, load_reward_model, resolve

TEXT = torch.tensor([[5, 6, 7, 8, 2]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a policy and of a reward model, to be copied."""
    base = tmp_path_factory.mktemp("models")
    return {"policy": make(base / "policy"), "scorer": make(base / "scorer", scorer=True)}


@pytest.fixture
def policy(saved, tmp_path) -> Path:
    return shutil.copytree(saved["policy"], tmp_path / "policy")


@pytest.fixture
def scorer(saved, tmp_path) -> Path:
    return shutil.copytree(saved["scorer"], tmp_path / "scorer")


def as_policy(folder: Path):
    return load_causal_lm(str(folder), "policy.path", torch.float32)


def as_scorer(folder: Path, new_head: bool = False):
    key = "reward.base" if new_head else "reward.path"
    return load_reward_model(str(folder), key, torch.float32, 0, new_head)


def refused(folder: Path, load=as_policy) -> str:
    with pytest.raises(UserError) as caught:
        load(folder)
    said = str(caught.value)
    assert "\n" not in said
    assert str(folder) in said
    return said


# --- every weight comes from the files --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "bert", "roberta", "modernbert"])
def test_whole_reward_models_give_what_transformers_gives(family: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "rm", family, scorer=True)
    expected = small_model(family, ROWS, scorer=True)(input_ids=TEXT).logits
    torch.testing.assert_close(as_scorer(folder)(input_ids=TEXT).logits, expected)


def test_a_policy_with_tied_embeddings_lacks_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "lm", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    expected = small_model("llama", ROWS, tie_word_embeddings=True)(input_ids=TEXT).logits
    torch.testing.assert_close(as_policy(folder)(input_ids=TEXT).logits, expected)


@pytest.mark.parametrize(
    ("prefix", "who"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DistributedDataParallel"),
        ("module._orig_mod.", "torch.compile"),
        ("base_model.model.", "peft"),
        ("student.", "a wrapper"),
    ],
)
def test_weights_under_a_wrappers_names_are_refused_with_how_to_rename_them(policy, scorer, prefix, who) -> None:
    for folder, load in ((policy, as_policy), (scorer, as_scorer)):
        # peft leaves the head, saved apart, as it was
        rename(folder, lambda name: name if prefix.startswith("base") and "score" in name else prefix + name)
        said = refused(folder, load)
        assert f"{who}" in said
        assert f"{{name.removeprefix('{prefix}'): tensor for name, tensor in state_dict.items()}}" in said
        rename(folder, lambda name: name.removeprefix(prefix))
        load(folder)
    rename(scorer, lambda name: prefix + name)
    assert who in refused(scorer, lambda folder: as_scorer(folder, new_head=True))


def test_a_prefix_that_transformers_understands_loads_the_same_weights(policy) -> None:
    expected = as_policy(policy)(input_ids=TEXT).logits
    rename(policy, lambda name: "model." + name)
    torch.testing.assert_close(as_policy(policy)(input_ids=TEXT).logits, expected)


def test_a_wrapper_inside_the_names_is_known_too(policy) -> None:
    rename(policy, lambda name: name.replace("layers.1.", "layers.1._fsdp_wrapped_module."))
    said = refused(policy)
    assert "FSDP" in said
    assert "name.replace('_fsdp_wrapped_module.', '')" in said


@pytest.mark.parametrize("lost", ["layers.1.", "embed_tokens", "layers.0.mlp.up_proj"])
def test_missing_weights_of_the_body_are_refused_whatever_the_model_is_for(policy, scorer, lost: str) -> None:
    for folder in (policy, scorer):
        rename(folder, lambda name: None if lost in name else name)
    for said in (
        refused(policy),
        refused(scorer, as_scorer),
        refused(scorer, lambda folder: as_scorer(folder, new_head=True)),
    ):
        assert "its weights lack model." in said
        assert "drawn at random" in said


def test_the_head_may_be_missing_only_where_it_is_to_be_trained(policy, scorer) -> None:
    rename(scorer, lambda name: None if "score" in name else name)
    assert "no trained scoring head (score.weight is missing)" in refused(scorer, as_scorer)
    as_scorer(scorer, new_head=True)
    body = as_scorer(policy, new_head=True).model  # lm_head is left over, and nothing else
    torch.testing.assert_close(body.norm.weight, as_policy(policy).model.norm.weight)


@pytest.mark.parametrize("other", ["score_head.weight", "v_head.summary.weight"])
def test_a_head_of_another_name_is_not_called_untrained(scorer, other: str) -> None:
    rename(scorer, lambda name: other if name == "score.weight" else name)
    said = refused(scorer, as_scorer)
    assert f"its scoring head is named {other}" in said
    assert f"state_dict['score.weight'] = state_dict.pop('{other}')" in said


def test_an_encoder_from_masked_language_modelling_can_become_a_reward_model(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=ROWS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32,
    )  # fmt: skip
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "mlm")
    as_scorer(tmp_path / "mlm", new_head=True)


@pytest.mark.parametrize("extra", ["model.layers.2.mlp.up_proj.weight", "v_head.summary.weight"])
def test_weights_that_the_model_has_no_place_for_are_refused(policy, scorer, extra: str) -> None:
    for folder, load in ((policy, as_policy), (scorer, as_scorer)):
        tensors = load_file(folder / "model.safetensors") | {extra: torch.ones(3)}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert f"its weights hold {extra}, which the Llama" in refused(folder, load)


def test_adapters_beside_whole_weights_are_never_added_to_them(policy, tmp_path: Path) -> None:
    model = get_peft_model(as_policy(policy), LoraConfig(r=2, task_type="CAUSAL_LM", target_modules="all-linear"))
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(policy)
    as_policy(policy)
    said = refused(tmp_path / "adapter")
    assert "holds only an adapter" in said
    assert f"name {policy}, in which it is merged" in said
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", policy)
    shutil.copy(tmp_path / "adapter" / "adapter_model.safetensors", policy)
    said = refused(policy)
    assert "holds adapter files (adapter_config.json) next to full weights" in said
    assert "AutoPeftModelForCausalLM" in said
    file = policy / "adapter_config.json"
    file.write_text(file.read_text().replace("CAUSAL_LM", "SEQ_CLS"))
    assert "AutoPeftModelForSequenceClassification" in refused(policy)  # else its head would be lost


# --- files that are none ----------------------------------------------------------------------------------------------


class Shell:
    """A pickle of it runs a command when it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_pickled_weights_are_read_only_as_tensors(policy, tmp_path: Path) -> None:
    tensors = load_file(policy / "model.safetensors")
    (policy / "model.safetensors").unlink()
    file = policy / "pytorch_model.bin"
    torch.save(tensors, file)
    as_policy(policy)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert f"{file}: is truncated" in refused(policy)
    torch.save({"model": tensors, "step": 3}, file)
    assert f"{file}: is not a state_dict" in refused(policy)
    with file.open("wb") as opened:
        pickle.dump({"a": Shell(tmp_path / "was run")}, opened)
    assert "Python objects other than tensors, which are never run" in refused(policy)
    torch.save({"a": Shell(tmp_path / "was run")}, file)
    assert "Python objects other than tensors, which are never run" in refused(policy)
    assert not (tmp_path / "was run").exists()


def test_shards(policy) -> None:
    as_policy(policy).save_pretrained(policy, max_shard_size="20KB")
    (policy / "model.safetensors").unlink()
    index = policy / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    assert len(names) > 1
    as_policy(policy)
    (policy / names[-1]).unlink()
    assert f"{index}: 1 of the {len(names)} weight files that it names are missing" in refused(policy)
    for names_, says in (
        ({"a": "../policy/x.safetensors"}, "is not a file of this folder"),
        (None, "cannot be read"),
        ({"a": 1}, "cannot be read"),
        ({}, "0 of the 0"),
    ):
        edit(policy, index.name, weight_map=names_)
        assert says in refused(policy)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_pointers_pipes_folders_and_links_in_place_of_files(policy, file: str) -> None:
    place = policy / file
    place.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert f"{place}: is a Git LFS pointer" in refused(policy)
    place.unlink()
    if file == "config.json":
        assert "holds no config.json" in refused(policy)
        return
    os.mkfifo(place)
    assert f"{place}: is not a regular file" in refused(policy)
    place.unlink()
    place.symlink_to("nowhere")
    assert f"{place}: is a link to nothing" in refused(policy)
    place.unlink()
    place.mkdir()
    assert f"{place}: is a folder" in refused(policy)


# --- numbers and words that cannot be meant ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 2**40}, "hidden_size=1099511627776: the weights have"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers=1000000: the weights have"),
        ({"num_labels": 10**9}, "num_labels=1000000000: no model has that many"),
        ({"vocab_size": 10**6, "intermediate_size": 10**6}, "parameters, but its weights hold"),
        ({"num_hidden_layers": 3}, "its weights lack model.layers.2."),
        ({"num_attention_heads": 0}, "cannot be loaded in this folder"),
        ({"hidden_size": None}, "cannot be loaded in this folder"),
        ({"dtype": "os.system"}, "cannot be loaded in this folder"),
        ({"rms_norm_eps": float("nan")}, "is not finite"),
        ({"hidden_act": "nope"}, "cannot be loaded in this folder"),
        ({"model_type": "nope"}, "cannot be loaded in this folder"),
        ({"model_type": "nope", "auto_map": {"AutoModel": "modeling.Nope"}}, "needs its own code (auto_map"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised (quantization_config: gptq"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised"),
    ],
)
def test_a_config_that_cannot_be_meant_is_one_line_and_allocates_nothing(policy, scorer, changes, says) -> None:
    for folder, load in ((policy, as_policy), (scorer, as_scorer)):
        edit(folder, "config.json", **changes)
        assert says in refused(folder, load)


def test_kernels_that_are_not_installed_are_not_needed(policy) -> None:
    expected = as_policy(policy)(input_ids=TEXT).logits
    edit(policy, "config.json", attn_implementation="flash_attention_2", _attn_implementation="flash_attention_2")
    torch.testing.assert_close(as_policy(policy)(input_ids=TEXT).logits, expected)


@pytest.mark.parametrize("ends", ["NaN", "1.5", '"</s>"', "[1, null]", "true", "{}"])
def test_tokens_that_end_a_reply_are_numbers(policy, ends: str) -> None:
    (policy / "generation_config.json").write_text(f'{{"eos_token_id": {ends}}}')
    said = refused(policy)
    assert f"generation_config.json: eos_token_id={ends}: must be a token id" in said


@pytest.mark.parametrize("text", ["", "null", "[1]", "{", "é"])
def test_json_that_is_none(policy, text: str) -> None:
    (policy / "config.json").write_text(text, encoding="latin-1")
    assert str(policy / "config.json") in refused(policy, lambda folder: resolve(str(folder), "policy.path"))


ODD = st.sampled_from([None, [], {}, "x", "", -1, 0, 2**40, 10**40, float("inf"), True, 1.5, ["a"], {"a": 1}])


@settings(
    max_examples=60, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(data=st.data())
def test_any_value_of_any_key_loads_or_is_one_line(saved, tmp_path: Path, data) -> None:
    kind = data.draw(st.sampled_from(["policy", "scorer"]))
    folder = tmp_path / "spoilt"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved[kind], folder)
    key = data.draw(st.sampled_from(sorted(json.loads((folder / "config.json").read_text()))))
    edit(folder, "config.json", **{key: data.draw(ODD)})
    assert "\n" not in said_of(folder, kind)


def said_of(folder: Path, kind: str) -> str:
    """What a person is told of a folder; nothing if it loads."""
    try:
        check_kind(str(folder), "policy.path", scorer=kind == "scorer")
        (as_policy if kind == "policy" else as_scorer)(folder)
    except UserError as error:
        return str(error)
    return ""
