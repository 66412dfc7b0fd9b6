"""What the packaging tests share."""

import pathlib
import subprocess
import sys
import time
import traceback

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 60


def run(*command, **options):
    """Runs a command; its output is text. Fails loudly unless told otherwise."""
    check = options.pop("check", True)
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def until(what, found):
    """Looks until `found` answers something true."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        answer = found()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE} s in vain: {what}")


def figure(text):
    """tests/run shows lines that begin so. Nothing is asserted about such a time."""
    print(f"FIGURE {text}", flush=True)


def main(checks):
    """Runs each check, in this order, and says how it went."""
    failed = 0
    for check in checks:
        begin = time.monotonic()
        try:
            check()
            print(f"ok      {check.__name__} ({time.monotonic() - begin:.1f} s)", flush=True)
        except Exception:
            failed += 1
            print(f"FAILED  {check.__name__}\n{traceback.format_exc()}", flush=True)
    print(f"{len(checks) - failed} passed, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)
