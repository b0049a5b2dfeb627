"""Makes kdkit's wheel from settings.ini with the standard library alone.

pip asks it, as pyproject.toml says (PEP 517 and 660), and `python scripts/backend.py FOLDER` writes the wheel. Nothing is fetched and
nothing is written beside the sources: it works without a network, and from a folder that is read-only.
"""
import base64
import hashlib
import io
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READ = ConfigParser(delimiters=['='])
READ.read(ROOT / 'settings.ini', encoding='utf-8')
SETTINGS = READ['DEFAULT']
NAME, VERSION = SETTINGS['lib_name'], SETTINGS['version']
INFO = f'{NAME}-{VERSION}.dist-info'
KAGGLE = 'kaggle.ipynb', 'kernel-metadata.json'  # of nbs/, which `kdkit kaggle push` uploads
SOURCES = 'benchmarks', 'images', 'nbs', 'recipes', 'scripts', 'tests'  # beside the package and the files of the root


def requirements() -> list:  # of (extra or '', requirement)
    "What the package needs, and what NAME_requirements of settings.ini add as the extra NAME."
    extras = {key.removesuffix('_requirements'): key for key in SETTINGS if key.endswith('_requirements')}
    return [('', one) for one in SETTINGS['requirements'].split()] + [(extra, one) for extra, key in extras.items()
                                                                      for one in SETTINGS[key].split()]


def metadata() -> str:
    "METADATA of the wheel, PKG-INFO of the sources."
    pythons = [f'3.{minor}' for minor in range(int(SETTINGS['min_python'].split('.')[1]), 14)]
    needs = requirements()
    head = [('Metadata-Version', '2.1'), ('Name', NAME), ('Version', VERSION), ('Summary', SETTINGS['description']),
            ('Author', SETTINGS['author']),
            ('Author-email', SETTINGS['author_email']), ('License', 'Apache-2.0'), ('Keywords', ','.join(SETTINGS['keywords'].split())),
            ('Project-URL', f"Source, {SETTINGS['git_url']}"),
            *(('Classifier', f'Programming Language :: Python :: {version}') for version in pythons),
            ('Requires-Python', f">={SETTINGS['min_python']}"),
            *(('Provides-Extra', extra) for extra in dict.fromkeys(extra for extra, _ in needs if extra)),
            *(('Requires-Dist', one + (f"; extra == '{extra}'" if extra else '')) for extra, one in needs),
            ('Description-Content-Type', 'text/markdown')]
    return '\n'.join(f'{key}: {value}' for key, value in head) + '\n\n' + (ROOT / 'README.md').read_text(encoding='utf-8')


def package_files() -> dict:  # name in the wheel -> bytes
    "The package, and the notebook that it can upload."
    here = [path for path in sorted((ROOT / NAME).rglob('*'))
            if path.is_file() and '__pycache__' not in path.parts and path.suffix not in ('.pyc', '.pyo')]
    files = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in here}
    return files | {f'{NAME}/kaggle_notebook/{name}': (ROOT / 'nbs' / name).read_bytes() for name in KAGGLE
                    if (ROOT / 'nbs' / name).exists()}


def info_files() -> dict:  # name in the wheel -> bytes
    "What describes the package."
    scripts = ''.join(f'{script}\n' for script in SETTINGS['console_scripts'].split())
    return {f'{INFO}/METADATA': metadata().encode(),
            f'{INFO}/WHEEL': b'Wheel-Version: 1.0\nGenerator: kdkit\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
            f'{INFO}/entry_points.txt': f'[console_scripts]\n{scripts}'.encode(),
            f'{INFO}/licenses/LICENSE': (ROOT / 'LICENSE').read_bytes()}


def write_wheel(
    folder,       # str or Path; made if missing
    files: dict,  # name -> bytes
) -> str:         # the wheel's name
    "A wheel of these files; the same files give the same bytes."
    hashed = lambda data: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()
    record = ''.join(f'{name},sha256={hashed(data)},{len(data)}\n' for name, data in files.items()) + f'{INFO}/RECORD,,\n'
    name = f'{NAME}-{VERSION}-py3-none-any.whl'
    Path(folder).mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(Path(folder, name), 'w', zipfile.ZIP_DEFLATED) as wheel:
        for file, data in [*files.items(), (f'{INFO}/RECORD', record.encode())]:
            entry = zipfile.ZipInfo(file, (2020, 1, 1, 0, 0, 0))
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            wheel.writestr(entry, data)
    return name


# What pip calls

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    return write_wheel(wheel_directory, package_files() | info_files())


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """A line on the search path, and no import hook: a regular package further down the path comes before a folder of the same name above
    it."""
    return write_wheel(wheel_directory, {f'__editable__.{NAME}.pth': f'{ROOT}\n'.encode()} | info_files())


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    for name, data in info_files().items():
        path = Path(metadata_directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return INFO


prepare_metadata_for_build_editable = prepare_metadata_for_build_wheel


def source_files() -> dict:  # name -> bytes
    "All that a person needs who changes the package: chapters, tests, tools, and the package that the chapters make."
    found = [path for path in ROOT.iterdir() if path.is_file()] + [path for folder in SOURCES for path in (ROOT / folder).rglob('*')]
    names = sorted(path.relative_to(ROOT) for path in found if path.is_file() and path.suffix not in ('.pyc', '.pyo'))
    seen = [name for name in names if not any(part.startswith('.') or part in ('__pycache__', 'runs') for part in name.parts)]
    package = {name: data for name, data in package_files().items() if '/kaggle_notebook/' not in name}
    return {name.as_posix(): (ROOT / name).read_bytes() for name in seen} | package | {'PKG-INFO': metadata().encode()}


def build_sdist(sdist_directory, config_settings=None):
    top = f'{NAME}-{VERSION}'
    with tarfile.open(Path(sdist_directory, f'{top}.tar.gz'), 'w:gz', format=tarfile.PAX_FORMAT) as archive:
        for name, data in source_files().items():
            entry = tarfile.TarInfo(f'{top}/{name}')
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return f'{top}.tar.gz'


if __name__ == '__main__':
    folder = sys.argv[1] if len(sys.argv) > 1 else 'dist'
    print(Path(folder, build_wheel(folder)))
