"""What the tests of all commands share."""

import pytest


@pytest.fixture
def refused(capsys):
    """Runs a script's `main`, which is to refuse its arguments with status 2; returns what it says."""

    def run(main, *arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        error = capsys.readouterr().err
        assert (stop.value.code, "Traceback" in error) == (2, False)
        return error

    return run
