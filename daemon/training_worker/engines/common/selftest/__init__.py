"""What of a GPU's self-test any engine's interpreter can run: ``PYTHON engines/common/selftest --kernel NAME``.

A child reports in JSON lines, as ``Reporter`` writes them. It is a child, since a broken kernel may take its
process along or never end. With ``--versions`` it reports what is installed, and imports none of it.
"""
