"""Train a zoo, fit a flow to it, make new networks, and say how good and how new they are.

.venv/bin/python experiments/run.py with flow=geometric
.venv/bin/python experiments/run.py with digits seed=1
.venv/bin/python experiments/run.py sample with checkpoint=runs/3 count=16
.venv/bin/python experiments/run.py evaluate with checkpoint=runs/3
.venv/bin/python experiments/run.py transfer with checkpoint=runs/3 'hidden=[32]'
.venv/bin/python experiments/run.py widths with checkpoint=runs/3 'widths=[4,16,64]' 'depths=[1,2]'
.venv/bin/python experiments/run.py guide with checkpoint=runs/3 count=16
.venv/bin/python experiments/run.py finetune with checkpoint=runs/3 count=8
.venv/bin/python experiments/run.py curve with checkpoint=runs/3 count=64 steps=128
.venv/bin/python experiments/run.py sharpen with checkpoint=runs/3 sharpness=3
.venv/bin/python experiments/run.py polish with checkpoint=runs/3 polish=64 count=64
.venv/bin/python experiments/run.py stages with checkpoint=runs/3 count=64
.venv/bin/python experiments/run.py density with checkpoint=runs/3
.venv/bin/python experiments/run.py posterior with checkpoint=runs/3
.venv/bin/python experiments/run.py rivals with checkpoint=runs/3
"""

from configuration import ex
from uses import (  # noqa: F401  each adds its commands to ex
    analysis,
    density,
    finetuning,
    guiding,
    main_job,
    networks,
    polishing,
    posterior,
    rivals,
    sizes,
)

ex.doc = __doc__

if __name__ == "__main__":
    ex.run_commandline()
