"Everything about the package stands in settings.ini; this file only hands it to setuptools, and needs nothing else to do so."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
settings = ConfigParser(delimiters=['='])
settings.read(here / 'settings.ini', encoding='utf-8')
cfg = settings['DEFAULT']
readme = here / 'README.md'
pythons = [f'3.{minor}' for minor in range(int(cfg['min_python'].split('.')[1]), 14)]

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else '',
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    license='Apache-2.0',
    keywords=cfg['keywords'],
    classifiers=[f'Programming Language :: Python :: {version}' for version in pythons],
    python_requires=f">={cfg['min_python']}",
    packages=[cfg['lib_path']],
    package_data={cfg['lib_path']: ['embedded_pair/**']},  # the teacher that works offline
    install_requires=cfg['requirements'].split(),
    extras_require={'dev': cfg['dev_requirements'].split()},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    zip_safe=False,
)
