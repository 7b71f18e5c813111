"""What a user has set up for their own work stays outside the study: matplotlib, dask, Jupyter, IPython."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from toys import ROOT

STUDY = {
    "notebooks": {
        "02_range_test": dict(
            dataset="digits",
            model="mlp",
            batch_size=50,
            min_lr=0.0001,
            max_lr=0.02,
            iterations=200,
            evaluate_every=10,
            optimizer="adam",
            weight_decay=0.0,
            runs=2,
        )
    }
}
#: By place in the home folder, what would end the study, or change its figures, if it were read.
HOME = {
    ".config/matplotlib/matplotlibrc": "text.usetex: True\nfont.family: no-such-font\nfigure.dpi: 7\n",
    ".config/dask/mine.yaml": "distributed: {worker: {preload: [no_such_module]}, comm: {require-encryption: true}}",
    ".local/share/jupyter/kernels/python3/kernel.json": json.dumps(
        {"argv": ["/bin/false", "{connection_file}"], "display_name": "Mine", "language": "python"}
    ),
    ".ipython/profile_default/startup/00-mine.py": "import torch\ntorch.set_default_dtype(torch.float64)\n",
}


@pytest.mark.ci
def test_a_users_own_settings_change_nothing(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(STUDY))
    for place, text in HOME.items():
        path = tmp_path / "home" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    changed = {"HOME": str(tmp_path / "home"), "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true"}
    changed["PYTHONSTARTUP"] = str(tmp_path / "home" / ".ipython/profile_default/startup/00-mine.py")
    other = tmp_path / "checkout" / "modules"  # another checkout that PYTHONPATH names
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise SystemExit('another checkout')", encoding="utf-8")
    changed["PYTHONPATH"] = str(other.parent)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "JUPYTER", "IPYTHON"))}
    found = []
    for name, environment in (("plain", plain), ("changed", plain | changed)):
        command = [sys.executable, "-m", "modules", "reproduce", "--study", str(tmp_path / "mine.yaml")]
        command += ["--results", str(tmp_path / name)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        files = [*(tmp_path / name).glob("range_test/*.csv"), *(tmp_path / name).glob("figures/*.png")]
        found.append({path.name: path.read_bytes() for path in files})
        assert len(files) == 5
    assert found[0] == found[1]
