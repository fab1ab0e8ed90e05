import numpy as np
import peft
import pytest
import torch

from medqua.core.adapter import QuasarConfig, diagnostics
from medqua.core.errors import BackboneError, ConfigError, ShapeError
from medqua.core.model import MedQuaClassifier, TinyArchitecture, load_backbone
from medqua.core.vision.processor import build_inputs

pytestmark = pytest.mark.filterwarnings(  # peft reads it while wrapping
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

SMALL = TinyArchitecture(
    vision_depth=1, vision_hidden=16, vision_heads=2, vision_mlp=16,
    decoder_layers=2, hidden=32, heads=2, mlp=32,
)  # fmt: skip


@pytest.fixture
def backbone():
    return load_backbone(architecture=SMALL, seed=3)


def inputs_of(backbone, n: int = 3, prompt: str = "Name the findings.", **order):
    images = list(np.random.default_rng(0).random((n, 112, 112), dtype=np.float32))
    return build_inputs(backbone.processor, images, prompt, **order)


def trained(backbone, **options) -> MedQuaClassifier:
    """A classifier whose head is not zero."""
    classifier = MedQuaClassifier(backbone.model, 5, tune="full", **options)
    torch.manual_seed(0)
    torch.nn.init.normal_(classifier.head.weight)
    return classifier


def test_untrained_head_says_one_half(backbone):
    classifier = MedQuaClassifier(backbone.model, 14, tune="head")
    logits = classifier(**inputs_of(backbone))
    assert logits.shape == (3, 14)
    assert logits.dtype == torch.float32
    assert not logits.any()


def test_visual_mean_is_the_mean_over_image_tokens(backbone):
    classifier = trained(backbone)
    inputs = inputs_of(backbone)
    with torch.no_grad():
        hidden = backbone.model(**inputs, output_hidden_states=True).hidden_states[-1]
        visual = inputs["mm_token_type_ids"] == 1
        mean = torch.stack([hidden[i, visual[i]].mean(0) for i in range(3)])
        expected = mean @ classifier.head.weight.T + classifier.head.bias
        torch.testing.assert_close(classifier(**inputs), expected)


def test_last_token_skips_padding_on_either_side(backbone):
    classifier = trained(backbone, pooling="last_token")
    inputs = inputs_of(backbone, n=1)
    expected = classifier(**inputs)
    for left in (True, False):
        padded = dict(inputs)
        for name, fill in (("input_ids", 0), ("attention_mask", 0), ("mm_token_type_ids", 0)):
            pad = torch.full((1, 3), fill, dtype=torch.int64)
            parts = [pad, inputs[name]] if left else [inputs[name], pad]
            padded[name] = torch.cat(parts, dim=1)
        torch.testing.assert_close(classifier(**padded), expected, rtol=1e-4, atol=1e-4)


def test_only_a_prompt_before_the_image_reaches_the_visual_tokens(backbone):
    classifier = trained(backbone)
    after = [inputs_of(backbone, prompt=p, image_first=True) for p in ("Name.", "The heart?")]
    before = [inputs_of(backbone, prompt=p) for p in ("Name.", "The heart?")]
    torch.testing.assert_close(classifier(**after[0]), classifier(**after[1]))
    assert not torch.allclose(classifier(**before[0]), classifier(**before[1]))


def test_language_head_is_not_computed(backbone):
    classifier = trained(backbone)
    calls = []
    backbone.model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    classifier(**inputs_of(backbone))
    assert not calls


def test_every_tunable_weight_gets_a_gradient(backbone):
    classifier = trained(backbone)
    classifier(**inputs_of(backbone)).sum().backward()
    groups = classifier.parameter_groups()
    assert set(groups) == {"backbone", "head"}
    assert all(p.grad is not None for ps in groups.values() for p in ps)
    frozen = MedQuaClassifier(backbone.model, 5, tune="head")
    assert list(frozen.parameter_groups()) == ["head"]


def test_head_stays_float32_on_a_bfloat16_backbone():
    backbone = load_backbone(architecture=SMALL, dtype=torch.bfloat16)
    classifier = trained(backbone)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = classifier(**inputs_of(backbone))
    assert logits.dtype == torch.float32
    assert classifier.head.weight.dtype == torch.float32


def test_gradient_checkpointing_changes_no_gradient(backbone):
    classifier = trained(backbone).train()
    inputs = inputs_of(backbone)
    classifier(**inputs).square().sum().backward()
    plain = {n: p.grad.clone() for n, p in classifier.named_parameters() if p.grad is not None}
    classifier.zero_grad()
    classifier.gradient_checkpointing_enable()
    classifier(**inputs).square().sum().backward()
    for name, parameter in classifier.named_parameters():
        if name in plain:
            assert torch.equal(parameter.grad, plain[name]), name


def adapted(backbone, tune: str = "adapter", **options) -> MedQuaClassifier:
    config = QuasarConfig(n_qubits=2, max_depth=2, every=1, rank=4, **options)
    classifier = MedQuaClassifier(peft.get_peft_model(backbone.model, config), 5, tune=tune)
    torch.manual_seed(0)
    torch.nn.init.normal_(classifier.head.weight)
    if "gamma_init" in options:  # an adapter that does something, as after training
        for name, parameter in classifier.named_parameters():
            if ".shadow." in name:
                torch.nn.init.normal_(parameter)
    return classifier


def test_new_adapter_leaves_the_logits_bit_for_bit(backbone):
    inputs = inputs_of(backbone)
    expected = trained(backbone).eval()(**inputs)
    assert torch.equal(adapted(backbone).eval()(**inputs), expected)


def test_disabled_adapter_is_the_backbone_bit_for_bit(backbone):
    inputs = inputs_of(backbone)
    expected = trained(backbone).eval()(**inputs)
    classifier = adapted(backbone, gamma_init=1.0).eval()
    assert not torch.allclose(classifier(**inputs), expected)
    with classifier.backbone.disable_adapter():
        assert torch.equal(classifier(**inputs), expected)


def test_tunable_parts_with_an_adapter(backbone):
    classifier = adapted(backbone, lora={"r": 2})
    groups = classifier.parameter_groups()
    assert set(groups) == {"adapter", "head"}
    trainable = {n for n, p in classifier.backbone.named_parameters() if p.requires_grad}
    assert trainable
    assert all("quasar_" in name or "lora_" in name for name in trainable)
    classifier.set_tunable("full")
    groups = classifier.parameter_groups()
    assert set(groups) == {"backbone", "adapter", "head"}
    plain = load_backbone(architecture=SMALL).model.model
    assert len(groups["backbone"]) == len(list(plain.parameters()))
    classifier.set_tunable("head")
    assert set(classifier.parameter_groups()) == {"head"}
    classifier.set_tunable("adapter")
    again = {n for n, p in classifier.backbone.named_parameters() if p.requires_grad}
    assert again == trainable


def test_visual_routing_sees_the_visual_tokens(backbone):
    classifier = adapted(backbone, gamma_init=1.0, route="visual").train()
    classifier(**inputs_of(backbone)).sum().backward()
    ratios = [layer.activation_ratio for layer in diagnostics(classifier.backbone).values()]
    assert len(ratios) == 2
    assert all(0 < ratio < 1 for ratio in ratios)


def test_padding_cannot_change_an_adapted_row(backbone):
    classifier = adapted(backbone, gamma_init=1.0).eval()
    inputs = inputs_of(backbone, n=1)
    expected = classifier(**inputs)
    for left in (True, False):
        padded = dict(inputs)
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            pad = torch.zeros((1, 4), dtype=torch.int64)
            padded[name] = torch.cat([pad, inputs[name]] if left else [inputs[name], pad], dim=1)
        torch.testing.assert_close(classifier(**padded), expected, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_with_an_adapter(backbone):
    classifier = adapted(backbone, gamma_init=1.0).train()
    inputs = inputs_of(backbone)
    classifier(**inputs).square().sum().backward()
    plain = {n: p.grad.clone() for n, p in classifier.named_parameters() if p.grad is not None}
    assert any("quasar_" in name for name in plain)
    classifier.zero_grad()
    classifier.gradient_checkpointing_enable()
    classifier(**inputs).square().sum().backward()
    for name, parameter in classifier.named_parameters():
        if name in plain:
            torch.testing.assert_close(parameter.grad, plain[name], msg=name)


def test_contradictions_are_refused(backbone):
    with pytest.raises(ConfigError, match="visual_mean, last_token"):
        MedQuaClassifier(backbone.model, 3, pooling="max", tune="full")
    with pytest.raises(ConfigError, match="at least one finding"):
        MedQuaClassifier(backbone.model, 0, tune="full")
    with pytest.raises(ConfigError, match="adapter, full, head"):
        MedQuaClassifier(backbone.model, 3, tune="some")
    with pytest.raises(ConfigError, match="get_peft_model"):
        MedQuaClassifier(backbone.model, 3)
    with pytest.raises(BackboneError, match="no inner multimodal model"):
        MedQuaClassifier(backbone.model.model, 3, tune="full")
    with pytest.raises(ShapeError, match="no pixel_values"):
        MedQuaClassifier(backbone.model, 3, tune="full")(
            input_ids=torch.zeros(1, 2, dtype=torch.int64),
            attention_mask=torch.ones(1, 2, dtype=torch.int64),
        )
