"""What a user can get wrong is answered at once: one paragraph that says what and where, exit code 2, no traceback."""

import pytest

from tests.unit.mistakes import MISTAKES, argv, prepare, project_root, said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("mistakes")
    prepare(tmp)
    return tmp


@pytest.mark.parametrize(("mistake", "answer"), MISTAKES, ids=[f"{i:02d}" for i in range(len(MISTAKES))])
def test_mistake(folder, mistake, answer):
    with project_root():
        code, text = said(argv(mistake, folder))
    lines = text.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: "), text
    assert answer.format(tmp=folder) in lines[0]
    assert not (folder / "out").exists(), "nothing is left"
