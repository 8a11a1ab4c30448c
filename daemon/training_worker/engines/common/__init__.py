"""What both engines do alike: the built-in trainer, and the one that runs in invoke-training's environment.

That environment has nothing of ours, and may be of Python 3.10. So what is here needs the standard library alone, and
imports Pillow, torch and safetensors where it uses them. Modules import each other relatively: there, they are not
called ``training_worker.engines.common``.
"""
