"""The adapters of modules/README.md, as they stand there, where the packages install."""

import re
from types import SimpleNamespace

import pytest
import torch
from toys import ROOT

from clr_study import find_rate

README = (ROOT / "modules" / "README.md").read_text()


def adapter(name):
    """A function from README's code."""
    code = next(code for code in re.findall(r"```python\n(.*?)```", README, re.S) if f"def {name}" in code)
    namespace = {}
    exec(code, namespace)
    return namespace[name]


def points(count=200):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 8, generator=generator)
    return inputs, (inputs @ torch.randn(8, 3, generator=generator)).argmax(1)


@pytest.mark.parametrize("shape", ["optimizer", "dict", "lists"])
def test_a_lightning_module_trains_by_its_own_step(shape):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(8, 3)

        def training_step(self, batch, index):
            loss = torch.nn.functional.cross_entropy(self.linear(batch[0]), batch[1])
            self.log("loss", loss)
            return loss if shape == "optimizer" else {"loss": loss}

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
            with_scheduler = {"optimizer": optimizer, "lr_scheduler": scheduler}
            return {"optimizer": optimizer, "dict": with_scheduler, "lists": ([optimizer], [scheduler])}[shape]

    module = Module()
    before = module.linear.weight.tolist()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*points()), batch_size=20)
    curve = adapter("lightning_range_test")(module, loader, iterations=100)
    assert curve.train_loss.min() < 0.7 * curve.train_loss.iloc[0]
    assert module.linear.weight.tolist() == before


@pytest.mark.parametrize("found", [lambda loss: loss, lambda loss: {"loss": loss}], ids=["loss", "dict"])
def test_a_step_that_returns_none_skips_its_batch(found):
    """As in Lightning, which is not needed for it: any module with these two methods will do."""

    class Module(torch.nn.Linear):
        def training_step(self, batch, index):
            loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
            return None if batch[1][0] == 0 else found(loss)

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), lr=0.1)]

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*points()), batch_size=20)
    curve = adapter("lightning_range_test")(Module(8, 3), loader, iterations=20)
    skipped = [int(labels[0]) == 0 for _, labels in loader]
    assert 0 < sum(skipped) < len(skipped)
    assert curve.train_loss.isna().tolist() == 2 * skipped


def test_both_adapters_find_a_rate_by_a_race():
    """With what has the methods that they use."""

    class Module(torch.nn.Linear):
        def training_step(self, batch, index):
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    torch.manual_seed(0)
    module = Module(8, 3)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*points()), batch_size=20)
    trainer = SimpleNamespace(
        model=module,
        optimizer=None,
        create_optimizer=module.configure_optimizers,
        get_train_dataloader=lambda: loader,
        compute_loss=lambda model, batch: model.training_step(batch, 0),
        args=SimpleNamespace(gradient_accumulation_steps=1),
    )
    race = dict(search=find_rate, validation=list(loader), iterations=800)
    found = adapter("lightning_range_test")(module, loader, **race), adapter("trainer_range_test")(trainer, **race)
    assert found[0].rate == found[1].rate
    assert not found[0].tried.empty


def test_a_trainer_of_transformers_trains_by_its_own_loss(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 20, (64, 6), generator=generator)
    data = [{"input_ids": row, "labels": int(row[0] > 9)} for row in tokens]
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, gradient_accumulation_steps=2, use_cpu=True, report_to=[]
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    curve = adapter("trainer_range_test")(trainer, iterations=60, max_lr=1.0)
    assert curve.train_loss.min() < 0.9 * curve.train_loss.iloc[0]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert trainer.optimizer is None
