"""What of a GPU's self-test any engine's interpreter can run: ``PYTHON engines/common/selftest --kernel NAME``.

What a child finds it says in JSON lines, as ``Reporter`` has them. It is a child, since a broken kernel may take its
process along or never end. With ``--versions`` it says what is installed, and imports none of it.
"""
