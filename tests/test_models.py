"""Models: known sizes, used shortcuts, plain twins, layouts and export."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ironrank.data.base import DataSpec
from ironrank.errors import IronrankError
from ironrank.models import (
    MODELS,
    VGG16,
    Given,
    LeNet5,
    Normalize,
    PreActResNet18,
    ResNet18,
    ResNet20,
    WideResNet,
    count,
    width_for,
)
from ironrank.models.base import kaiming
from ironrank.models.blocks import BasicBlock, Pad, PreActBlock

MNIST = DataSpec((1, 28, 28), 10, (0.13,), (0.31,))
CIFAR = DataSpec((3, 32, 32), 10, (0.49, 0.48, 0.45), (0.2, 0.2, 0.2))
CIFAR100 = CIFAR._replace(classes=100)
IMAGENET = DataSpec((3, 224, 224), 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

NARROW = {
    "lenet5": LeNet5(width=0.2),
    "vgg16": VGG16(width=0.05),
    "wrn": WideResNet(depth=10, widen=1, width=0.25),
    "resnet18": ResNet18(width=0.06),
    "preact-resnet18": PreActResNet18(width=0.06, last_norm=True),
    "resnet20": ResNet20(width=0.2),
}
each = pytest.mark.parametrize("model", NARROW.values(), ids=NARROW.keys())


def pixels(spec=CIFAR, n=2):
    return torch.rand((n, *spec.shape), generator=torch.Generator().manual_seed(1))


def weights(net):
    return sum(p.numel() for p in net.parameters() if p.dim() > 1)


def built(model, spec=CIFAR):
    torch.manual_seed(0)
    return model.build(spec)


def on_meta(model, spec):
    with torch.device("meta"):
        return model.build(spec)


def test_every_model_has_a_narrow_case():
    assert NARROW.keys() == MODELS.keys() - {Given.name}


@pytest.mark.parametrize(
    ("model", "spec", "count"),
    [
        (LeNet5(), MNIST, 430_500),
        (VGG16(), CIFAR, 15_239_872),
        (WideResNet(), CIFAR, 2_745_264),
        (WideResNet(), CIFAR100, 2_768_304),
    ],
)
def test_weight_counts(model, spec, count):
    assert weights(on_meta(model, spec)) == count


@pytest.mark.parametrize(
    ("model", "spec", "published"),
    [
        (ResNet18(), CIFAR, 11_173_962),
        (ResNet18(), CIFAR100, 11_220_132),
        (ResNet18(stem="imagenet"), IMAGENET, 11_689_512),
        (PreActResNet18(), CIFAR, 11_171_146),
        (PreActResNet18(last_norm=True), CIFAR, 11_172_170),
        (PreActResNet18(stem="imagenet"), IMAGENET, 11_686_696),
        (ResNet20(), CIFAR, 269_722),
        (ResNet20(shortcut="conv"), CIFAR, 272_474),
        (VGG16(), CIFAR, 15_249_354),
        (
            VGG16(hidden=0),
            CIFAR,
            14_724_042,
        ),  # 14,728,266 where the convolutions have biases beside batch norm
        (WideResNet(depth=16, widen=4), CIFAR, 2_748_890),
        (WideResNet(depth=28, widen=4), CIFAR, 5_849_050),
        (WideResNet(depth=28, widen=10), CIFAR, 36_479_194),
    ],
)
def test_parameter_counts_with_biases_and_batch_norm(model, spec, published):
    assert count(model, spec) == published == sum(p.numel() for p in on_meta(model, spec).parameters())


@pytest.mark.parametrize(
    ("name", "spec", "expected"),
    [
        ("lenet5", MNIST, 109_295),
        ("vgg16", CIFAR, 3_816_426),
        ("wrn", CIFAR, 688_882),
        ("resnet18", CIFAR, 2_797_610),
        ("preact-resnet18", CIFAR, 2_796_202),
        ("resnet20", CIFAR, 68_050),
    ],
)
def test_parameter_counts_at_half_the_width(name, spec, expected):
    assert count(MODELS[name](width=0.5), spec) == expected


@each
@pytest.mark.parametrize("spec", [CIFAR, CIFAR100, DataSpec((1, 40, 36), 4, (0.5,), (0.5,))])
def test_logits_for_any_shape(model, spec):
    logits = built(model, spec)(pixels(spec))
    assert logits.shape == (2, spec.classes)
    assert torch.isfinite(logits).all()


@each
def test_first_child_normalizes_and_names_are_clear(model):
    net = built(model)
    names = [name for name, _ in net.named_children()]
    assert names[:2] == ["normalize", "conv1"]
    assert isinstance(net.normalize, Normalize)
    assert not any(name.isdigit() for path, _ in net.named_modules() for name in path.split("."))


@each
def test_every_parameter_gets_a_gradient(model):
    net = built(model)
    net(pixels(n=4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for name, p in net.named_parameters())


@each
def test_convolution_before_batch_norm_has_no_bias(model):
    net = built(model)
    normed = any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert all((m.bias is None) == normed for m in net.modules() if isinstance(m, nn.Conv2d))


@each
def test_channels_last_gives_the_same_logits(model):
    net = built(model).eval()
    expected = net(pixels())
    net.to(memory_format=torch.channels_last)
    got = net(pixels().to(memory_format=torch.channels_last))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@each
def test_export_keeps_the_function_for_any_batch(model):
    net = built(model).eval()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(net, (pixels(),), dynamic_shapes=(batch,))
    torch.testing.assert_close(program.module()(pixels(n=3)), net(pixels(n=3)))


def test_compile_traces_one_whole_graph():
    net = built(NARROW["wrn"]).eval()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(pixels()), net(pixels()))


@each
def test_same_seed_same_network(model):
    first, second = built(model).state_dict(), built(model).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@each
def test_the_input_is_not_overwritten(model):
    x = pixels()
    built(model)(x)
    assert torch.equal(x, pixels())


@each
def test_too_small_images_are_refused(model):
    with pytest.raises(IronrankError, match="pixels are needed"):
        model.build(DataSpec((3, 3, 40), 10, (0.5,) * 3, (0.5,) * 3))


def test_lenet5_equals_the_textbook_order():
    net = built(LeNet5(width=0.2), MNIST)
    x = pixels(MNIST)
    h = (x - 0.13) / 0.31
    h = F.max_pool2d(F.leaky_relu(F.conv2d(h, net.conv1.weight, net.conv1.bias), 0.01), 2)
    h = F.max_pool2d(F.leaky_relu(F.conv2d(h, net.conv2.weight, net.conv2.bias), 0.01), 2)
    h = F.leaky_relu(net.fc1(h.flatten(1)), 0.01)
    torch.testing.assert_close(net(x), net.fc2(h))


def test_vgg16_order_of_layers():
    names = [name for name, _ in built(NARROW["vgg16"]).named_children()]
    assert sum(name.startswith("conv") for name in names) == 13
    assert sum(name.startswith("pool") for name in names) == 5
    assert names[-7:] == ["flatten", "dropout", "fc1", "act14", "fc2", "act15", "fc3"]


def test_vgg16_dropout_acts_in_training_only():
    net = built(VGG16(width=0.05, dropout=0.5))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = pixels()
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("block", [PreActBlock, BasicBlock])
@pytest.mark.parametrize("stride", [1, 2])
def test_block_without_residual_branch_is_the_shortcut(block, stride):
    torch.manual_seed(0)
    net = block(4, 4, stride, 0.01).eval()
    nn.init.zeros_(net.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    if stride == 1:
        expected = x
    elif block is PreActBlock:
        expected = net.shortcut(F.leaky_relu(net.bn1(x), 0.01)[..., ::2, ::2])
    else:
        expected = net.shortcut(x[..., ::2, ::2])
    if block is BasicBlock:
        expected = F.leaky_relu(expected, 0.01)
    torch.testing.assert_close(net(x.clone()), expected)


BLOCKS = {"wrn": 3, "resnet18": 8, "preact-resnet18": 8, "resnet20": 9}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_of_the_network_uses_its_shortcut(name):
    net = built(NARROW[name]).eval()
    blocks = [m for m in net.modules() if isinstance(m, PreActBlock | BasicBlock)]
    assert len(blocks) == BLOCKS[name]
    for block in blocks:
        nn.init.zeros_(block.conv2.weight)  # now only shortcuts carry the image
    x = pixels()
    assert not torch.allclose(net(x), net(1 - x), atol=1e-3)


def test_the_shortcut_without_parameters_keeps_every_other_pixel_between_zeros():
    x = torch.arange(2 * 4 * 6 * 6.0).view(2, 4, 6, 6)
    y = Pad(4, 9)(x)
    assert y.shape == (2, 9, 6, 6)
    torch.testing.assert_close(y[:, 2:6], x)
    assert y[:, :2].abs().sum() == y[:, 6:].abs().sum() == 0
    block = BasicBlock(4, 6, 2, 0.0, pad=True).eval()
    nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(block(x), Pad(4, 6)(x[..., ::2, ::2]))
    assert sum(p.numel() for p in block.parameters()) == 9 * (4 * 6 + 6 * 6) + 2 * 12


@pytest.mark.parametrize("kind", [BasicBlock, PreActBlock])
@pytest.mark.parametrize("side", [7, 8])
def test_a_sliced_shortcut_is_a_strided_one(kind, side):
    torch.manual_seed(0)
    block, x = kind(4, 6, 2, 0.1).eval(), torch.randn(2, 4, side, side)
    nn.init.zeros_(block.conv2.weight)
    if kind is BasicBlock:
        wanted = block.act2(block.shortcut.bn(F.conv2d(x, block.shortcut.conv.weight, stride=2)))
    else:
        wanted = F.conv2d(block.act1(block.bn1(x)), block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), wanted)


def test_no_net_has_a_strided_convolution_of_one_pixel():
    """oneDNN corrupts memory there, see `ironrank.models.blocks`."""
    for name, model in MODELS.items():
        if name != "given":
            layers = built(model(width=0.0625)).modules()
            ones = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
            assert all(layer.stride == (1, 1) for layer in ones), name


@pytest.mark.parametrize("kind", [ResNet18, PreActResNet18])
@pytest.mark.parametrize("side", [64, 224])
def test_stems(kind, side):
    spec = DataSpec((3, side, side), 5, (0.5,) * 3, (0.25,) * 3)
    net = built(kind(width=0.06, stem="imagenet"), spec)
    assert net.conv1.kernel_size == (7, 7)
    first = [
        child
        for name, child in net.named_children()
        if name in ("normalize", "conv1", "bn1", "pool1", "act1")
    ]
    assert nn.Sequential(*first)(pixels(spec)).shape[-2:] == (side // 4, side // 4)
    assert net(pixels(spec)).shape == (2, 5)
    assert built(kind(width=0.06), spec).conv1.kernel_size == (3, 3)


@pytest.mark.parametrize("kind", [ResNet18, PreActResNet18, ResNet20])
def test_residual_networks_have_relu_and_he_fan_out_weights(kind):
    net = built(kind(width=0.5))
    assert {type(m) for m in net.modules() if isinstance(m, nn.ReLU | nn.LeakyReLU)} == {nn.ReLU}
    widest = max(
        (m for m in net.modules() if isinstance(m, nn.Conv2d)), key=lambda m: m.weight.numel()
    ).weight
    assert widest.var().item() == pytest.approx(2 / (widest.shape[0] * 9), rel=0.05)


def test_vgg16_with_one_linear_layer():
    names = [name for name, _ in built(VGG16(width=0.05, hidden=0)).named_children()]
    assert names[-3:] == ["flatten", "dropout", "fc1"]
    assert built(VGG16(width=0.05, hidden=0, dropout=0.1))(pixels()).shape == (2, 10)


# ---- narrow networks of a given size


@pytest.mark.parametrize("name", NARROW)
def test_the_narrow_network_is_the_largest_that_fits(name):
    model, target = type(NARROW[name])(), 1 / 8 * count(type(NARROW[name])(), CIFAR)
    width = width_for(model, CIFAR, target)
    found = [count(dataclasses.replace(model, width=w), CIFAR) for w in (width, width + 1e-4)]
    assert 0.85 * target < found[0] <= target < found[1]


def test_the_width_of_the_whole_network_is_at_least_one():
    assert 1 <= width_for(LeNet5(), MNIST, count(LeNet5(), MNIST)) < 1.03
    assert width_for(LeNet5(width=0.3), MNIST, 50_000) == width_for(LeNet5(), MNIST, 50_000)


def test_a_narrow_network_that_cannot_be_is_refused():
    with pytest.raises(IronrankError, match=r"at most 10 parameters: the narrowest has [\d,]+; allow more"):
        width_for(LeNet5(), MNIST, 10)
    for endless in (math.inf, math.nan):
        with pytest.raises(IronrankError, match="a finite number is needed"):
            width_for(LeNet5(), MNIST, endless)
    with pytest.raises(IronrankError, match="given has no width"):
        width_for(Given(), MNIST, 1000)


def test_a_module_of_ones_own_cannot_be_built():
    with pytest.raises(IronrankError, match=r"train\(run, out, model=net\)"):
        Given(title="my net").build(CIFAR)


def test_kaiming_variance():
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 128, 3)
    kaiming(layer, slope=0.5)
    assert layer.weight.var().item() == pytest.approx(2 / (1.25 * 128 * 9), rel=0.02)


def test_width_and_widen_scale_the_weights():
    assert weights(on_meta(LeNet5(width=2.0), MNIST)) > 3 * 430_500
    # all three shortcuts change the number of channels at widen=4; the first does not at widen=1
    assert on_meta(WideResNet(widen=1), CIFAR).group1.block1.shortcut is None
    assert on_meta(WideResNet(widen=4), CIFAR).group1.block1.shortcut is not None


def test_wide_resnet_depth():
    net = on_meta(WideResNet(depth=28, widen=2), CIFAR)
    assert sum(isinstance(m, PreActBlock) for m in net.modules()) == 12
    with pytest.raises(IronrankError, match=r"wrn\.depth=18"):
        WideResNet(depth=18)


def test_normalize_standardizes_and_travels_with_the_weights():
    layer = Normalize((0.1, 0.2), (0.5, 0.25))
    x = torch.tensor([0.6, 0.7]).view(1, 2, 1, 1)
    torch.testing.assert_close(layer(x).flatten(), torch.tensor([1.0, 2.0]))
    assert set(layer.state_dict()) == {"mean", "std"}
    assert "0.25" in repr(layer)


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.0,)), ((0.5, 0.5), (0.5,)), ((0.5,), (float("nan"),))])
def test_normalize_refuses_nonsense(mean, std):
    with pytest.raises(IronrankError, match="std above 0"):
        Normalize(mean, std)


def test_settings_are_checked_at_the_door():
    with pytest.raises(IronrankError, match=r"lenet5\.width"):
        LeNet5(width=0)
    with pytest.raises(IronrankError, match="cifar, imagenet"):
        ResNet18(stem="mnist")
