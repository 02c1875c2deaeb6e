"""The conformance kit: one shared Hypothesis suite that certifies any backend and proves when it is wrong.

As a pytest plugin: ``pytest --pyargs refpeft_conformance --refpeft-backend torch -k "lora and bf16"``. On the command line:
``refpeft certify torch``. In other people's property tests: ``from refpeft_conformance import strategies``.
"""
