"""The built-in trainer: FLUX LoRAs with diffusers and peft, one program per attempt.

The libraries read the environment when they are imported. This package is imported before them, by whichever program
or test needs them, and so is the one place to keep them off the network and what they print down to errors.
"""

import os

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
for _name, _value in {
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(_name, _value)
