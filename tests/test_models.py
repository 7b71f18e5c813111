"""Networks: parameter counts, shapes, and the layers torch does not have."""

import itertools

import pytest
import torch
from toys import FIXED, every

from modules.models import build, parameter_groups, pretrained
from modules.models.caffe import LocalResponseNorm
from modules.models.wide_resnet import ACTIVATIONS
from modules.runs.spec import spec
from modules.runs.stacked import why_not
from modules.runs.training import make_optimizer, step


@every(
    ("name", "options", "count"),
    [
        ("cifar10_quick", {}, 116_906),
        ("cifar10_quick", {"pooling": "caffe"}, 145_578),
        ("cifar10_full", {}, 85_098),
        ("cifar10_full", {"pooling": "caffe"}, 89_578),
        ("cifar10_full_sigmoid_bn", {}, 85_354),
        ("cifar10_full_sigmoid_bn", {"pooling": "caffe"}, 89_834),
        ("lenet", {"channels": 1, "size": 28}, 431_080),
        ("mlp", {"channels": 1, "size": 28}, 84_060),
        ("wide_resnet-28-10", {}, 36_479_194),
    ],
)
def test_parameter_counts(name, options, count):
    with torch.device("meta"):
        model = build(name, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@every("name", ["cifar10_quick", "cifar10_full", "cifar10_full_sigmoid_bn", "lenet", "mlp", "wide_resnet-10-1"])
@every(("channels", "size"), [(1, 28), (3, 32)])
def test_logits_for_any_images(name, channels, size):
    assert build(name, channels, size, classes=7)(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_caffe_pooling_gives_caffe_sizes():
    sizes = []
    model = build("cifar10_quick", pooling="caffe")
    for layer in model:
        if isinstance(layer, (torch.nn.MaxPool2d, torch.nn.AvgPool2d)):
            layer.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    model(torch.zeros(1, 3, 32, 32))
    assert sizes == [16, 8, 4]


@pytest.mark.parametrize(
    ("name", "deviations"),
    [("cifar10_quick", [1e-4, 1e-2, 1e-2, 0.1, 0.1]), ("cifar10_full", [1e-4, 1e-2, 1e-2, 1e-2])],
)
def test_caffe_init_has_the_prototxt_deviations_and_zero_biases(name, deviations):
    torch.manual_seed(0)
    layers = [layer for layer in build(name, init="caffe") if hasattr(layer, "weight")]
    assert [layer.weight.std().item() for layer in layers] == pytest.approx(deviations, rel=0.1)
    assert all((layer.bias == 0).all() for layer in layers)


def test_caffe_init_of_batch_normalisation_scales_by_one_and_shifts_a_little():
    torch.manual_seed(0)
    model = build("cifar10_full_sigmoid_bn", init="caffe")
    normalised = [layer for layer in model if isinstance(layer, torch.nn.BatchNorm2d)]
    assert len(normalised) == 3
    assert all((layer.weight == 1).all() and (layer.bias == 0.001).all() for layer in normalised)
    assert model[0].weight.std().item() == pytest.approx(1e-4, rel=0.1)


def test_caffe_pooling_divides_by_what_is_left_of_a_window_at_the_border():
    (pool,) = [layer for layer in build("cifar10_quick", pooling="caffe") if isinstance(layer, torch.nn.AvgPool2d)][:1]
    x = torch.arange(16.0).view(1, 1, 4, 4)
    # Windows of three by two steps: the second starts at 2 and has two columns left.
    expected = [[x[0, 0, :3, :3].mean(), x[0, 0, :3, 2:].mean()], [x[0, 0, 2:, :3].mean(), x[0, 0, 2:, 2:].mean()]]
    torch.testing.assert_close(pool(x)[0, 0], torch.tensor(expected))


def test_local_response_norm_is_the_formula():
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    expected = torch.empty_like(x)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    for i in range(5):
        for j in range(5):
            mean = (padded[:, :, i : i + 3, j : j + 3] ** 2).sum((2, 3)) / 9
            expected[:, :, i, j] = x[:, :, i, j] / (1 + 0.1 * mean) ** 0.75
    torch.testing.assert_close(LocalResponseNorm(3, 0.1)(x), expected)


def test_gradient_of_the_normalisation_is_that_of_its_formula():
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(LocalResponseNorm(3, 0.3), (x,))


def test_biases_get_their_own_group_only_when_asked():
    model = build("cifar10_quick")
    assert len(parameter_groups(model)) == 1
    weights, biases = parameter_groups(model, 2.0)
    assert biases["lr_mult"] == 2.0
    assert all(parameter.ndim == 1 for parameter in biases["params"])
    assert len(weights["params"]) == len(biases["params"]) == 5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # By layer, weight then bias: (rate multiplier, weight decay at 0.004), from Caffe's train_test files.
        ("cifar10_quick", [(1, 0.004), (2, 0.004)] * 5),
        (
            "cifar10_full",
            [(1, 0.004), (2, 0.004), (1, 0.004), (2, 0.004), (1, 0.004), (1, 0.004), (1, 1.0), (2, 0.0)],
        ),
        (
            "cifar10_full_sigmoid_bn",
            [
                *[(1, 0.004), (2, 0.004), (1, 0.0), (1, 0.0)] * 2,
                *[(1, 0.004), (1, 0.004), (1, 0.0), (1, 0.0), (1, 1.0), (0.2, 0.0)],
            ],
        ),
    ],
)
def test_caffe_multipliers_layer_by_layer(name, expected):
    model = build(name)
    groups = parameter_groups(model, multipliers="caffe", weight_decay=0.004)
    found = {id(p): (group["lr_mult"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == len(list(model.parameters())) == len(expected)
    assert [found[id(p)] for p in model.parameters()] == [pytest.approx(pair) for pair in expected]


def test_caffe_multipliers_are_for_caffe_networks():
    for model, factor in ((build("mlp"), 1.0), (build("cifar10_quick"), 2.0)):
        with pytest.raises(ValueError, match="multipliers='caffe'"):
            parameter_groups(model, factor, "caffe")


@every(
    ("arguments", "message"),
    [
        (dict(name="alexnet"), "'alexnet'"),
        (dict(name="wide_resnet-27-10"), "27-10"),
        (dict(name="cifar10_quick", size=8), "too small"),
        (dict(name="cifar10_quick", pooling="up"), "pooling.*'up'"),
        (dict(name="cifar10_quick", init="zero"), "init.*'zero'"),
        (dict(name="mlp", init="caffe"), "'mlp'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.parametrize(("init", "gain"), [("he_normal", 2.0), ("he_uniform", 2.0), ("glorot_normal", None)])
def test_named_initialisations_have_their_standard_deviations(init, gain):
    torch.manual_seed(0)
    model = build("wide_resnet-10-4", init=init)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) and layer.weight.numel() > 10_000:
            receptive = layer.weight[0, 0].numel()
            inputs, outputs = layer.weight.shape[1] * receptive, layer.weight.shape[0] * receptive
            expected = (gain / inputs if gain else 2 / (inputs + outputs)) ** 0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert (model.classifier.bias == 0).all()


def test_activation_is_the_wide_residual_networks_own():
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    outputs = []
    for activation in ACTIVATIONS:
        torch.manual_seed(0)
        outputs.append(build("wide_resnet-10-1", activation=activation)(images))
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(outputs, 2))
    with pytest.raises(ValueError, match="activation='elu' is an option of wide_resnet"):
        build("lenet", 1, 28, activation="elu")


def test_a_few_steps_of_the_wide_residual_network_lower_its_loss():
    torch.manual_seed(0)
    model = build("wide_resnet-10-2", size=8, init="he_normal")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    losses = [step(model, optimizer, images, labels).item() for _ in range(4)]
    assert losses[-1] < losses[0] / 2


def test_a_pretrained_network_keeps_its_weights_and_draws_its_last_layer():
    torch.manual_seed(1)
    first = build("pretrained", 1, 28, 5)
    torch.manual_seed(2)
    second = build("pretrained_head", 1, 28, 5)
    known = torch.load(pretrained.WEIGHTS, weights_only=True)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        last = name.startswith("11.")
        assert torch.equal(a, b) != last
        assert last or torch.equal(a, known[name])
        assert a.requires_grad
        assert b.requires_grad == last
    with pytest.raises(ValueError, match="28 x 28"):
        build("pretrained", 3, 32, 5)


def test_a_run_trains_what_is_not_frozen_and_nothing_else():
    run = spec(
        dataset="fashion-mnist-5-9", model="pretrained_head", seed=1, iterations=2, evaluate_every=2, policy=FIXED
    )
    assert "not all of" in why_not(run)  # nor with others, whose trainer would move all
    network = build("pretrained_head", 1, 28, 5)
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    optimizer = make_optimizer(run, network)
    optimizer.param_groups[0]["lr"] = 0.1
    step(network, optimizer, torch.rand(4, 1, 28, 28), torch.arange(4))
    for name, weight in network.named_parameters():
        assert torch.equal(weight, before[name]) != name.startswith("11.")


def test_the_transformer_reads_every_character_of_its_window():
    torch.manual_seed(0)
    network = build("transformer", 1, 8, 50).eval()
    window = torch.randint(0, 50, (1, 1, 8, 8)).float()
    said = network(window)
    assert said.shape == (1, 50)
    for place in range(64):
        other = window.clone()
        other.view(-1)[place] = (other.view(-1)[place] + 1) % 50
        assert not torch.equal(network(other), said)
    with pytest.raises(ValueError, match="dataset=text"):
        build("transformer", 3, 32, 10)
