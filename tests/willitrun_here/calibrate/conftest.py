"""An engine for the tests of this folder."""

from __future__ import annotations

import pytest

from willitrun_estimator.tensors import tensors
from willitrun_here.calibrate import made_up
from willitrun_here.calibrate.kernels import NARROW


@pytest.fixture
def engine(tmp_path):
    """A llama-bench that answers at once, and a model to give it."""
    spec = NARROW.spec(2)
    listed = [(one.name, one.shape, "F32" if len(one.shape) == 1 else "Q8_0") for one in tensors(spec)]
    model = made_up.write(tmp_path / "tiny.gguf", made_up.metadata_of(spec), listed)
    program = tmp_path / "llama-bench"
    program.write_text("""#!/bin/sh\necho '[{"n_gen": 0, "avg_ts": 900.0}, {"n_gen": 32, "avg_ts": 90.0}]'""")
    program.chmod(0o755)
    return str(program), model
