"""QuickGELU weights in a GELU architecture, and the reverse, are refused as far as a file tells."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from clip_files import archive, as_openai, config_file, random_clip, same
from clip_files import registry as registry

from last_vit.checkpoint_layouts import OPENAI_ATTRIBUTES
from last_vit.clip_checkpoints import RECORD_FILE, check_activation, config_uses_quick_gelu, known_activation
from last_vit.clip_models import load_clip

pytestmark = pytest.mark.usefixtures("registry")
HASH = "0" * 64


@pytest.mark.parametrize(
    ("name", "quick_gelu"),
    [
        ("openai_b_16.pt", True),  # LaSt-ViT's release
        ("OpenAI-ViT-L-14.bin", True),
        ("metaclip_b16.pt", True),
        ("b16_400m.pt", True),  # MetaCLIP's own name
        ("DFN2B-CLIP-ViT-B-16.bin", True),
        ("vit_b_32-quickgelu-laion400m_e32-46683a32.pt", True),
        ("CLIP-ViT-B-16-laion2B-s34B-b88K.safetensors", False),
        ("datacomp_xl_s13b_b90k.pt", False),
        # nothing, both, or families of both kinds
        ("epoch_32.pt", None),
        ("ViT-B-16.pt", None),
        ("openai_then_laion2b.pt", None),
        ("metaclip_altogether.pt", None),
        ("DFN2B-CLIP-ViT-L-14-39B.bin", None),
        ("plain.openness.pt", None),
    ],
)
def test_what_a_name_tells(name, quick_gelu):
    known = known_activation(Path("openai") / name, HASH, ["visual.proj"])
    assert (None if known is None else known.quick_gelu) is quick_gelu


def test_what_is_in_the_file_goes_before_its_name():
    known = known_activation(Path("laion2b.pt"), HASH, [*OPENAI_ATTRIBUTES, "visual.proj"])
    assert known == (True, "OpenAI's own layout")
    assert known_activation(Path("a.pt"), HASH, ["vocab_size"]) is None
    sha256 = open_clip.get_pretrained_cfg("ViT-B-16", "openai")["url"].split("/")[-2]
    assert known_activation(Path("my.pt"), sha256, []).quick_gelu is True
    known = known_activation(Path("openai.pt"), "55e67d44" + "1" * 56, [])
    assert known.quick_gelu is False
    assert "laion400m_e32" in known.why


def test_a_record_goes_before_all(tmp_path):
    def known(model, forced=False, names=()):
        record = {"model": model, "pool": "host", "top_k": None, "variant": None, "force_quick_gelu": forced}
        return known_activation(tmp_path / "openai.pt", HASH, names, record)

    assert known("ViT-B-16", names=OPENAI_ATTRIBUTES).quick_gelu is False
    assert known("ViT-B-16", forced=True).quick_gelu is True
    assert known("ViT-B-16-quickgelu").quick_gelu is True
    assert known("mini").why == "openai in the file's name"
    config_file(tmp_path, "mini", quick_gelu=True)  # as the training leaves it
    assert known("mini") == (True, "last_vit.json beside it records mini")


@pytest.mark.parametrize(
    ("arch", "quick_gelu", "way_out"),
    [
        ("ViT-B-16", True, "use ViT-B-16-quickgelu$"),
        ("ViT-B-16-quickgelu", False, "use ViT-B-16$"),
        ("EVA02-B-16", True, 'use a model config that has "quick_gelu": true$'),
    ],
)
def test_the_way_out(arch, quick_gelu, way_out):
    uses = config_uses_quick_gelu(arch)
    assert uses is not quick_gelu
    known = known_activation(Path("openai.pt" if quick_gelu else "laion2b.pt"), HASH, [])
    with pytest.raises(ValueError, match=rf"trained with {'Quick' if quick_gelu else ''}GELU.*{way_out}"):
        check_activation(arch, uses, Path("a.pt"), known)
    check_activation(arch, quick_gelu, Path("a.pt"), known)
    check_activation(arch, uses, Path("a.pt"), None)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("layout", ["archive", "plain"])
def test_openais_files_in_a_gelu_architecture(tmp_path, layout):
    """As downloaded, and as a plain state dict under any name; in a QuickGELU architecture they load as written."""
    config = config_file(tmp_path)
    weights = as_openai(random_clip(config).state_dict())
    path = tmp_path / "weights.pt"
    archive(path, weights) if layout == "archive" else torch.save(weights, path)
    with pytest.raises(ValueError, match=r"trained with QuickGELU \(OpenAI's own layout\).*tiny computes GELU.*wrong"):
        load_clip(config, path)
    model = load_clip(config_file(tmp_path, "tiny-quickgelu", quick_gelu=True), path).model
    assert same(model, {name: value for name, value in weights.items() if name not in OPENAI_ATTRIBUTES})
    assert model.visual.conv1.weight.dtype == torch.float32
    with pytest.raises(ValueError, match=r"use tiny-quickgelu$"):  # known by now
        load_clip(config, path)


def test_a_run_with_forced_quick_gelu(tmp_path):
    """Its record makes the plain name build what was trained; another GELU name is refused."""
    config, path = config_file(tmp_path), tmp_path / "epoch_1.pt"
    torch.save(random_clip(config).state_dict(), path)
    images = torch.rand(1, 3, 32, 32)
    plain = load_clip(config, path).model.encode_image(images)
    content = {"pool": "host", "top_k": None, "variant": None, "model": "tiny", "force_quick_gelu": True}
    (tmp_path / RECORD_FILE).write_text(json.dumps(content))
    forced = load_clip(config, path).model.encode_image(images)
    quick = load_clip(config_file(tmp_path, "quick", quick_gelu=True), path)
    assert torch.equal(forced, quick.model.encode_image(images))
    assert not torch.allclose(forced, plain)
    with pytest.raises(ValueError, match="records tiny with force_quick_gelu"):
        load_clip(config_file(tmp_path, "same"), path)
