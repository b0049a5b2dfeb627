import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # nothing here may depend on a network
os.environ['OMP_NUM_THREADS'] = '1'  # before torch is here: runs in this process and in others are compared to the last bit
sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile('busy', deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a slow machine is no fault
settings.load_profile('busy')
from pairs import save_pair, save_text

@pytest.fixture(scope='session')
def pair(tmp_path_factory):
    "Config values of a miniature pair with two tokenizers, and its text."
    folder = tmp_path_factory.mktemp('pair')
    return dict(save_pair(folder), dataset=save_text(folder))

@pytest.fixture(scope='session')
def same_pair(tmp_path_factory):
    "The same with one tokenizer."
    folder = tmp_path_factory.mktemp('same_pair')
    return dict(save_pair(folder, same=True), dataset=save_text(folder))

@pytest.fixture(scope='session')
def leading(pair, tmp_path_factory):
    "The miniature pair with a student so sure of nonsense that a random teacher is ahead of it."
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    folder = tmp_path_factory.mktemp('leading')
    student = AutoModelForCausalLM.from_pretrained(pair['student_model'])
    with torch.no_grad(): student.model.norm.weight.mul_(8)
    student.save_pretrained(folder)
    AutoTokenizer.from_pretrained(pair['student_model']).save_pretrained(folder)
    return dict(pair, student_model=str(folder))
