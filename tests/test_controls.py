"A kernel handles widget messages while its cell trains, and everything else afterwards and once."
import time

import pytest

jupyter_client = pytest.importorskip('jupyter_client')

LISTENS = '''
import time
from comm import create_comm
from kdkit.controls import handle_widget_messages
got, comm = [], create_comm(target_name='a page')
comm.on_msg(lambda message: got.append(message['content']['data']))
print('comm', comm.comm_id, flush=True)
begin = time.monotonic()
while len(got) < 3 and time.monotonic() - begin < 20:
    handle_widget_messages()
    time.sleep(.02)
print('clicks', got, flush=True)
'''


@pytest.fixture
def client():
    manager = jupyter_client.KernelManager(kernel_name='python3')
    manager.start_kernel()
    client = manager.client()
    client.interrupt = manager.interrupt_kernel
    client.start_channels()
    client.wait_for_ready(60)
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def text(client, beginning, timeout=60):
    "The next line of output that begins so."
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        message = client.get_iopub_msg(timeout=timeout)
        assert message['msg_type'] != 'error', message['content']
        if message['msg_type'] == 'stream' and message['content']['text'].startswith(beginning): return message['content']['text'].strip()
    raise AssertionError(f'no output begins with {beginning!r}')


def click(client, comm_id, data):
    message = client.session.msg('comm_msg', dict(comm_id=comm_id, data=data))
    client.shell_channel.send(message)
    return message['header']['msg_id']


def test_clicks_come_in_while_the_cell_runs_and_cells_wait(client):
    client.execute(LISTENS)
    comm_id = text(client, 'comm').split()[1]
    clicks = [click(client, comm_id, 'first')]
    later = [client.execute(f"print('cell', {n}, flush=True)") for n in range(3)]  # queued between clicks
    clicks += [click(client, comm_id, data) for data in ('second', 'third')]
    begin, seen = time.monotonic(), []
    while True:
        message = client.get_iopub_msg(timeout=30)
        kind, parent = message['msg_type'], message['parent_header'].get('msg_id')
        if kind == 'status': seen.append((parent, message['content']['execution_state']))
        if kind == 'stream':
            assert message['content']['text'].strip() == "clicks ['first', 'second', 'third']"  # and not yet a cell
            break
    assert time.monotonic() - begin < 10
    for msg_id in clicks: assert [state for parent, state in seen if parent == msg_id] == ['busy', 'idle']  # the page waits for it
    assert [text(client, 'cell') for _ in later] == ['cell 0', 'cell 1', 'cell 2']
    client.execute("print('alive', flush=True)")
    assert text(client, '') == 'alive'  # no cell ran twice


AGAIN = """
import time
from kdkit.controls import handle_widget_messages, speak_to
print('running', flush=True)
begin, again = time.monotonic(), None
while again is None and time.monotonic() - begin < 20:
    again = handle_widget_messages()
    time.sleep(.02)
speak_to(again)
print('here', flush=True)
"""


def test_a_cell_that_is_run_again_speaks_to_the_new_request(client):
    def run(code, cell):
        content = dict(code=code, silent=False, store_history=True, user_expressions={}, allow_stdin=False, stop_on_error=True)
        message = client.session.msg('execute_request', content, metadata=dict(cellId=cell))
        client.shell_channel.send(message)
        return message['header']['msg_id']
    run(AGAIN, 'a')
    assert text(client, 'running') == 'running'
    run("print('other', flush=True)", 'b')
    second = run("print('over', flush=True)", 'a')
    parents = {}
    while len(parents) < 3:
        message = client.get_iopub_msg(timeout=30)
        assert message['msg_type'] != 'error', message['content']
        if message['msg_type'] == 'stream': parents[message['content']['text'].strip()] = message['parent_header']['msg_id']
    assert list(parents) == ['here', 'other', 'over'] and parents['here'] == parents['over'] == second


def test_an_interrupt_still_ends_the_cell(client):
    client.execute(LISTENS, stop_on_error=False)  # otherwise what comes right after an error is dropped
    text(client, 'comm')
    client.interrupt()
    while (message := client.get_iopub_msg(timeout=30))['msg_type'] != 'error': pass
    assert message['content']['ename'] == 'KeyboardInterrupt'
    client.execute("print('alive', flush=True)")
    while (message := client.get_iopub_msg(timeout=30))['msg_type'] != 'stream': pass
    assert message['content']['text'].strip() == 'alive'


def test_nothing_happens_outside_a_notebook():
    from kdkit.controls import handle_widget_messages, running_kernel
    assert running_kernel() is None and handle_widget_messages() is None
