"""A network of the user's own, in a file of theirs."""

import json
import random

import numpy as np
import pytest
import torch
from toys import a_record, small

from modules import models
from modules.checks import RunError
from modules.data.datasets import load
from modules.models import own
from modules.report.tables import read_runs
from modules.runs import stacked, training
from modules.runs.files import RunFiles
from modules.runs.training import train
from modules.study import cli

GOOD = """
from beside import WIDTH
from torch import nn


def net(channels, size, classes):
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Flatten(), nn.LazyLinear(classes)
    )
"""

#: What works on images laid out as torch's default is, and not on those of a training.
FLAT = """
from torch import nn


class Net(nn.Sequential):
    def forward(self, x):
        x = self[0](x)
        return self[1](x.view(x.size(0), -1))


def net(channels, size, classes):
    return Net(nn.Conv2d(channels, 4, 3), nn.Linear(4 * (size - 2) ** 2, classes))
"""


#: With dropout, statistics, and a weight that is computed anew in every pass.
WEIGHT_NORM = """
from torch import nn


def net(channels, size, classes):
    conv = nn.utils.weight_norm(nn.Conv2d(channels, 4, 3))
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * (size - 2) ** 2, classes))
"""

#: Returns a second head's logits too while it trains, as torchvision's GoogLeNet does.
TWO_HEADS = """
from torch import nn


class Net(nn.Sequential):
    def forward(self, x):
        return (super().forward(x),) * 2 if self.training else super().forward(x)


def net(channels, size, classes):
    return Net(nn.Flatten(), nn.Linear(channels * size * size, classes))
"""


#: Draws from every generator there is, in training and in evaluation.
DRAWS = """
import random

import numpy as np
import torch
from torch import nn


class Draws(nn.Sequential):
    def forward(self, x):
        noise = np.random.normal() + random.random() + torch.randn(1).item()
        return super().forward(x) + 0.1 * noise * torch.randn(10)


def net(channels, size, classes):
    width = 8 + np.random.randint(8) + random.randrange(8)
    flat = nn.Linear(channels * size * size, width)
    return Draws(nn.Flatten(), flat, nn.Dropout(), nn.Linear(width, classes))
"""


#: As torchvision's networks are trained further: weights from a file, a body that stays as it is, a new head.
FURTHER = """
from pathlib import Path

import torch
from torch import nn


class Net(nn.Sequential):
    def parameter_groups(self):
        return [{"params": self[0].parameters()}, {"params": self[3].parameters(), "lr_mult": 10.0}]


def net(channels, size, classes):
    made = Net(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * (size - 2) ** 2, classes))
    made[:2].load_state_dict(torch.load(Path(__file__).with_name("body.pt")))
    made[:2].requires_grad_(False)
    made[1].eval()
    return made
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "beside.py").write_text("WIDTH = 4")
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


def test_it_is_trained_like_the_others_and_a_seed_gives_the_same_bytes(tmp_path, file):
    run = small(model=f"{file}:net")
    assert run.model == f"{file}:net@{own._checksum(file)}"
    assert models.label(run.model) == "net"
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(run, first).read_bytes() == train(run, second).read_bytes()
    assert json.loads(RunFiles(first, run.name).json.read_text())["spec"]["model"] == run.model
    assert "of your own" in stacked.why_not(run)


def test_what_a_network_draws_depends_on_seed_and_iteration_alone(tmp_path, file):
    file.write_text(DRAWS)
    run = small(model=f"{file}:net", iterations=30, evaluate_every=6)
    found = []
    for stops in ([None], [6, 18, None], [24, None]):
        folder = tmp_path / str(stops)
        for number, stop in enumerate(stops):
            torch.manual_seed(number), np.random.seed(number), random.seed(number)
            path = train(run, folder, stop_after=stop)
        found.append(path.read_bytes())
    assert found[0] == found[1] == found[2]
    assert train(run.model_copy(update={"seed": 2}), folder).read_bytes() != found[0]


def test_a_run_leaves_the_random_state_as_it_was(tmp_path, file):
    file.write_text(DRAWS)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = torch.rand(1).item(), np.random.random(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    train(small(model=f"{file}:net@{own._checksum(file)}"), tmp_path)
    assert (torch.rand(1).item(), np.random.random(), random.random()) == expected


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_being_tried_leaves_a_network_and_the_random_state_as_they_were(file):
    file.write_text(WEIGHT_NORM)
    before = torch.get_rng_state()
    network = own.make(f"{file}:net", 3, 8, 10)  # which cannot be copied
    drawn = torch.get_rng_state()
    assert network.training
    assert network[1].num_batches_tracked == 0
    assert (network[1].running_var == 1).all()
    torch.set_rng_state(before)
    own._function(str(file), "net", own._checksum(str(file)))(3, 8, 10)
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_network_that_is_trained_further_keeps_its_weights_its_frozen_parts_and_the_ratios_of_its_groups(
    tmp_path, file
):
    file.write_text(FURTHER)
    body = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    body[1].running_mean.fill_(0.5)
    torch.save(body.state_dict(), file.with_name("body.pt"))
    adamw = dict(model=f"{file}:net", optimizer="adamw", weight_decay=0.1, pixels="standard")
    run = small(dict(name="linear", lr=0.01), **adamw, keep_weights=True)
    train(run, tmp_path)  # with four evaluations, after which it trains on
    after = torch.load(tmp_path / "linear-seed1.weights.pt")
    for name, value in body.state_dict().items():
        assert torch.equal(after[name], value), name
    network = training.build(run, load("digits"))
    assert not torch.equal(after["3.weight"], network[3].weight)
    optimizer = training.make_optimizer(run, network)
    assert type(optimizer) is torch.optim.AdamW
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}
    assert run.policy.scheduler(optimizer, 24).get_last_lr() == pytest.approx([0.01, 0.1])


def test_groups_that_no_optimizer_can_train_are_named_before_any_work(tmp_path, file):
    for groups, message in (
        ("5", "gave 5: a list of groups such as"),
        ('[{"params": [self[3].weight]}]', r"once .not in them: '3.bias'"),
        ('[{"params": [self[3].weight, self[3].bias, self[3].bias]}]', "is needed in its parameter_groups.. once"),
        ('[{"params": self.parameters(), "lr": 1}]', "params, lr_mult and weight_decay are known, not lr"),
        ('[{"params": self.parameters(), "lr_mult": -1}]', "lr_mult=-1 in its parameter_groups"),
    ):
        body, head = 'made[:2].load_state_dict(torch.load(Path(__file__).with_name("body.pt")))', FURTHER.index("[{")
        file.write_text(FURTHER.replace(body, "").replace(FURTHER[head : FURTHER.index("\n", head)], groups))
        with pytest.raises(RunError, match=message) as error:
            train(small(model=f"{file}:net"), tmp_path)
        assert "\n" not in str(error.value)


def test_a_changed_file_is_another_network(tmp_path, file):
    run = small(model=f"{file}:net")
    train(run, tmp_path)
    file.write_text(GOOD + "# changed")
    with pytest.raises(RunError, match="mine.py has changed since it was asked for"):
        train(run.model_copy(update={"seed": 2}), tmp_path)
    with pytest.raises(RunError, match="model: .*mine.py:net@"):  # the complete run is of the file as it was
        train(small(model=f"{file}:net"), tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (GOOD, "other", "mine.py has no function other"),
        ("import nothing_of_that_name", "net", "mine.py cannot be run: ModuleNotFoundError: No module named"),
        ("def net(:", "net", "mine.py cannot be run: SyntaxError"),
        ("def net(): pass", "net", "mine.py:net: TypeError: net.. takes 0 positional arguments but 3 were given"),
        ("def net(a, b, c): return 5", "net", "it returned 5, not a torch.nn.Module"),
        (FLAT, "net", "mine.py:net: RuntimeError: view size is not compatible"),
        (TWO_HEADS, "net", r"mine.py:net: TypeError: of images .* in training, not logits \[2, 10\]"),
        (GOOD + "    return None", "none", "mine.py has no function none"),
        ("from torch import nn\ndef net(a, b, c): return nn.Flatten()", "net", r"it makes \[2, 1024\] in evaluation"),
        (GOOD.replace("classes)\n", "7)\n"), "net", r"it makes \[2, 7\] in evaluation, not logits \[2, 10\]"),
    ],
)
def test_what_is_no_network_is_named_before_any_work(tmp_path, file, text, name, message):
    file.write_text(text)
    with pytest.raises(RunError, match=message) as error:
        train(small(model=f"{file}:{name}"), tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*.csv"))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RunError, match="model: .*none.py cannot be read"):
        small(model=f"{tmp_path}/none.py:net")
    with pytest.raises(RunError, match="or path/to/file.py:function"):
        small(model="mine.py")


def test_a_record_runs_no_file_on_its_word(tmp_path, file, capsys):
    """Neither to verify it, nor to read it: whoever asks must name the file, and the file must be the one."""
    train(small(model=f"{file}:net"), tmp_path / "theirs")
    own._function.cache_clear()
    run = RunFiles(tmp_path / "theirs", "triangular-seed1")
    file.write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\n{GOOD}")
    text, record = run.read()
    record["spec"]["model"] = small(model=f"{file}:net").model
    run.finish([line.split(",") for line in text.splitlines()[1:]], record)
    assert cli.main(["verify", "--results", str(run.folder)]) == 2
    said = capsys.readouterr().err
    assert "was trained with a network in a Python file" in said
    assert said.count("\n") == 1
    for name, message in ((f"{file}:other", "was trained with net of a file"), ("mlp", "file.py:function is needed")):
        assert cli.main(["verify", "--results", str(run.folder), "--model", name]) == 2
        assert message in capsys.readouterr().err
    assert len(read_runs(run.folder)) == 4
    assert not (tmp_path / "owned").exists()
    copy = tmp_path / "mine.py"
    copy.write_text(file.read_text())
    assert cli.main(["verify", "--results", str(run.folder), "--model", f"{copy}:net"]) == 0
    assert (tmp_path / "owned").exists()


def test_a_record_whose_network_has_no_checksum_is_refused_and_its_file_not_opened(tmp_path):
    run = RunFiles(tmp_path, "triangular-seed1")
    record = a_record()
    record["spec"]["model"] = f"{tmp_path}/none.py:net"
    run.finish([(6, 0.1, 2.0, 2.0, 0.5)], record)
    with pytest.raises(RunError, match="model=.*: the checksum of its file is missing"):
        run.read()
