"""Class embeddings: open_clip's own zero-shot code as the reference, prompts, and a cache that is never wrong."""

import open_clip
import pytest
import torch
from clip_parts import tiny_clip, tiny_tokenizer
from safetensors.torch import load_file, safe_open, save_file

from last_vit import clip_text
from last_vit.clip_text import default_cache, embedding_key, encode_class_names, read_templates

NAMES = ["tench", "great white shark", "red panda", "polar bear", "tv"]


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(), tiny_tokenizer()


class Counting(torch.nn.Module):
    """A CLIP that counts the prompts it is given."""

    def __init__(self, clip):
        super().__init__()
        self.clip, self.prompts = clip, []  # a number would be a setting of the model
        self.eval()

    def encode_text(self, tokens):
        self.prompts.append(len(tokens))
        return self.clip.encode_text(tokens)


@pytest.mark.parametrize(("which", "count"), [("openai", 80), ("simple", 7)])
def test_templates_are_open_clips(which, count):
    theirs = getattr(open_clip, f"{which.upper()}_IMAGENET_TEMPLATES")
    ours = read_templates(which)
    assert len(ours) == count
    assert [template.replace("{}", "red panda") for template in ours] == [each("red panda") for each in theirs]


def test_other_templates(tmp_path):
    assert read_templates("a photo of a {}") == ("a photo of a {}",)
    path = tmp_path / "templates.txt"
    path.write_text("a {}.\nthe {}.\n")
    assert read_templates(path) == read_templates(str(path)) == ("a {}.", "the {}.")
    for text, message in (("a {}\nphoto\n", "exactly one {}"), ("{} {}\n", "exactly one"), ("{}\n{}\n", "twice")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_templates(path)
    with pytest.raises(FileNotFoundError, match="openai, simple, a template such as"):
        read_templates("opanai")


@pytest.mark.parametrize(("templates", "batch_size"), [("openai", 256), ("openai", 33), ("simple", 1), ("{}", 2)])
def test_equals_open_clips_zero_shot_code(clip, templates, batch_size):
    model, tokenizer = clip
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, read_templates(templates)).T
    ours = encode_class_names(model, tokenizer, NAMES, read_templates(templates), batch_size)
    assert ours.dtype == torch.float32
    assert not ours.requires_grad
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(len(NAMES)))


def test_bfloat16_models_under_autocast_give_float32(clip):
    model = tiny_clip().to(torch.bfloat16)
    with torch.autocast("cpu", torch.float16):
        ours = encode_class_names(model, clip[1], NAMES, ("a {}",))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(len(NAMES)))
    assert (ours - encode_class_names(*clip, NAMES, ("a {}",))).abs().max() < 0.1


def test_refusals(clip):
    model, tokenizer = clip
    broken, short = tiny_clip(), tiny_clip(text={"context_length": 8})
    broken.text_projection.data[0] = float("nan")
    of_short, template = open_clip.tokenizer.SimpleTokenizer(context_length=8), ("a photo of a {}",)
    for *arguments, match in (
        (model, tokenizer, [], ("{}",), "needs names, templates"),
        (model, tokenizer, NAMES, (), "needs names, templates"),
        (tiny_clip().train(), tokenizer, NAMES, ("{}",), r"eval mode.*model\.eval"),
        (broken, tokenizer, NAMES, ("{}",), "not finite"),
        (short, of_short, ["cat", "big red panda"], template, "'a photo of a big red panda' has 9 tokens.* reads 8"),
    ):
        with pytest.raises(ValueError, match=match):
            encode_class_names(*arguments)
    assert encode_class_names(short, of_short, ["red panda"], template).shape == (1, 16)  # 8 tokens, full


def test_a_second_run_reads_what_the_first_wrote(clip, tmp_path):
    model, cache = Counting(clip[0]), tmp_path / "a" / "b"
    first = encode_class_names(model, clip[1], NAMES, ("a {}", "the {}"), batch_size=4, cache=cache)
    second = encode_class_names(model, clip[1], NAMES, ("a {}", "the {}"), batch_size=256, cache=cache)
    assert sum(model.prompts) == 10
    assert torch.equal(first, second)
    assert torch.equal(first, encode_class_names(*clip, NAMES, ("a {}", "the {}"), batch_size=4))
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]  # nothing left over


def test_other_content_is_another_key(clip):
    """Whatever can change an embedding changes the key, also what no weight shows: activation, heads, pooling."""
    model, tokenizer = clip
    tokens = tokenizer(["a cat", "a dog"])
    same = embedding_key(model, tokens, 1)
    images = tiny_clip()
    images.visual.proj.data += 1
    images.logit_scale.data += 1
    assert embedding_key(images, tokens, 1) == same
    others = [tiny_clip(quick_gelu=True), tiny_clip(text={"heads": 4}), tiny_clip(text={"pool_type": "last"})]
    for other in others:
        other.load_state_dict(model.state_dict())
    one_weight = tiny_clip()
    one_weight.text_projection.data[3, 3] += 1e-6
    keys = [embedding_key(other, tokens, 1) for other in (*others, one_weight, tiny_clip().half())]
    keys += [embedding_key(model, tokenizer(["a cat", "a cow"]), 1), embedding_key(model, tokens, 2)]
    assert len({same, *keys}) == len(keys) + 1


@pytest.mark.parametrize("damage", ["truncated", "other key", "changed", "other shape", "other file"])
def test_a_damaged_file_is_made_anew(clip, tmp_path, capfd, damage):
    model = Counting(clip[0])
    expected = encode_class_names(model, clip[1], NAMES, ("{}",), cache=tmp_path)
    (path,) = tmp_path.iterdir()
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    embeddings = load_file(path)["embeddings"]
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "other file":
        path.write_bytes(b"")
    else:
        changes = {"changed": embeddings + 1e-3, "other shape": embeddings[:-1].contiguous()}
        if damage == "other key":
            metadata["key"] = metadata["key"][:-1] + "x"
        save_file({"embeddings": changes.get(damage, embeddings)}, path, metadata)
    for _ in range(2):  # the second time the new file is read
        assert torch.equal(encode_class_names(model, clip[1], NAMES, ("{}",), cache=tmp_path), expected)
    assert f"{path} are made anew" in capfd.readouterr().err
    assert sum(model.prompts) == 2 * len(NAMES)


def test_a_folder_that_cannot_be_written_is_a_warning(clip, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    found = encode_class_names(*clip, NAMES, ("{}",), cache=tmp_path / "file" / "below")
    assert torch.equal(found, encode_class_names(*clip, NAMES, ("{}",)))
    assert "are not kept in" in capfd.readouterr().err


def test_default_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "last_vit" / "class_embeddings"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "last_vit" / "class_embeddings"


def test_processes_share_the_names(clip, monkeypatch):
    """Three processes, two names: their parts, made one after the other, add up to the whole."""
    expected = encode_class_names(*clip, NAMES[:2], ("{}", "a {}"))
    parts = []
    for share in (range(0), range(0, 1), range(1, 2)):
        monkeypatch.setattr(clip_text, "process_share", lambda length, rank, share=share: share)
        monkeypatch.setattr(clip_text, "all_gather", lambda size: [size, torch.tensor(16)])
        parts.append(encode_class_names(*clip, NAMES[:2], ("{}", "a {}")))
    torch.testing.assert_close(torch.stack(parts).sum(dim=0), expected)
    assert not parts[0].any()
