"""Random input for everything that can be written, mounted, recorded or asked by ioctl.

Whatever makes input takes its choices from a `random.Random`. So the same code is driven by Hypothesis in the tests, by
plain random numbers for as long as somebody likes (`python -m tests.fuzz.run`), and by the bytes of a coverage-guided
fuzzer (the same, with `--guided`). What was found is kept in `corpus`, and gone through by the tests.
"""
