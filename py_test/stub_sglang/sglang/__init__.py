"""The parts of SGLang that `launch_server` uses, with the simulated worker as engine. For the tests."""
