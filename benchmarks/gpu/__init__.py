"""What training takes on a real GPU, beside the plan and beside diffusers' example loop; and the product as a whole.

    python -m benchmarks.gpu                 on the first GPU; status 1 where there is none
    python -m benchmarks.gpu --if-present    the same, and skipped with status 0 where there is none
    python -m benchmarks.gpu --tiny          the same from end to end on the CPU, with tiny models and a simulated GPU

It needs no more than a machine with torch, this project's packages, and a RabbitMQ server for the last part. All
weights are random: nothing is downloaded. It ends within ``--minutes``, and leaves out what there is no time for.
"""
