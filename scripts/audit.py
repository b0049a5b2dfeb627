"""Ask about known vulnerabilities of the installed versions, and say of how many anything was learnt: pip-audit calls it a success where it
knew no package at all.

python scripts/audit.py pins.txt pip-audit   # requirements as of pip freeze, and the program
"""
import json
import re
import subprocess
import sys
from pathlib import Path

SERVICES = 'pypi', 'osv'  # the second is asked about what the first does not know


def plain(name): return re.sub('[-_.]+', '-', name).lower()  # one of the spellings of a package


def public(pins):
    """The versions under which they were published: a build of its own (+cpu) has no advisories. And names of what is no version of an
    index."""
    lines = [line.split('#')[0].strip() for line in pins.splitlines()]
    return [line.split('+')[0] for line in lines if '==' in line], [line.split(' @ ')[0].removeprefix('-e ') for line in lines
                                                                    if line and '==' not in line]


def ask(program, pins, service):
    "What pip-audit says about these: (entries with vulns or a skip_reason, '' or why there are none)."
    file = Path('.venv-audit', 'asked.txt')
    file.parent.mkdir(exist_ok=True)
    file.write_text('\n'.join(pins) + '\n')
    done = subprocess.run([program, '--no-deps', '--disable-pip', '--progress-spinner', 'off', '-f', 'json', '-s', service, '-r', file],
                          capture_output=True, text=True)
    try: return json.loads(done.stdout)['dependencies'], ''
    except (ValueError, KeyError): return [], (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1][:300]


def verdict(entries, unknown=(), failures=()):
    "(lines to print, exit code) for entries as pip-audit writes them."
    known = {plain(one['name']): one for one in entries if 'skip_reason' not in one}
    skipped = sorted({plain(name) for name in (*(one['name'] for one in entries), *unknown)} - known.keys())
    found = [(one, fault) for one in known.values() for fault in one['vulns']]
    lines = [f"{one['name']} {one['version']}: {fault['id']}, mended in {', '.join(fault.get('fix_versions') or ['no version yet'])}"
             for one, fault in found]
    lines += [f'no answer: {why}' for why in failures]
    if skipped: lines.append(f"nothing is known about {len(skipped)}: {', '.join(skipped)}")
    lines.append(f'{len(known)} of {len(known) + len(skipped)} packages were audited, {len(found)} known vulnerabilities')
    if not known:
        lines.append('NOTHING WAS AUDITED: no service with known vulnerabilities gave an answer here, so this says '
                     'nothing about the versions')
    return lines, 1 if found or not known else 0


def main(file, program):
    pins, unknown = public(Path(file).read_text())
    entries, failures, left = [], [], pins
    for service in SERVICES:
        if not left: break
        said, why = ask(program, left, service)
        entries += said
        failures += [f'{service}: {why}'] * bool(why)
        known = {plain(one['name']) for one in entries if 'skip_reason' not in one}
        left = [pin for pin in left if plain(pin.split('==')[0]) not in known]
    unknown += [pin.split('==')[0] for pin in left]
    lines, code = verdict(entries, unknown, failures)
    print('\n'.join(lines))
    return code


if __name__ == '__main__': sys.exit(main(*sys.argv[1:3]))
