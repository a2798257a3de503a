"""Shape bias against counts by hand, and files that are no answers."""

import pytest

from mmreplk.analysis import Decisions, draw_shape_bias, read_decisions
from mmreplk.analysis.shape_bias import plot as shape_bias_plot
from mmreplk.analysis.shape_bias.decisions import (
    Counts,
    format_csv,
    format_table,
    parse_groups,
    parse_image_name,
)

HEAD = 'subj,session,trial,rt,object_response,category,condition,imagename'
# Picture and answer. Of cat: 2 shape, 1 texture, 1 other; of dog: 1 texture; of car: 1 other.
ANSWERS = [
    ('cat1-dog1.png', 'cat'), ('cat2-dog3.png', 'cat'), ('cat3-bird1.png', 'bird'),
    ('cat4-bird2.png', 'oven'), ('dog1-cat12.png', 'cat'), ('car1-oven1.png', 'truck'),
    ('dog2-dog3.png', 'dog'), ('car2-car3.png', 'oven'),  # no conflict
]


@pytest.fixture
def write(tmp_path):
    """Writes answers as MMPretrain's metric does; returns the file's name."""

    def write(name, subject, answers, head=HEAD):
        rows = [f'{subject},1,{index},NaN,{answer},{picture.rpartition("_")[2].partition("-")[0]}'
                for index, (picture, answer) in enumerate(answers)]
        rows = [f'{row.rstrip("0123456789")},NaN,{picture}'
                for row, (picture, _) in zip(rows, answers, strict=True)]
        path = tmp_path / name
        path.write_text('\r\n'.join([head, *rows, '']))
        return str(path)

    return write


def test_bias_by_hand(write):
    found = read_decisions([write('a.csv', 'net', ANSWERS)])
    assert list(found) == ['net']
    net = found['net']
    assert net.categories == {
        'car': Counts(0, 0, 1), 'cat': Counts(2, 1, 1), 'dog': Counts(0, 1, 0)}
    assert list(net.categories) == ['car', 'cat', 'dog']
    assert [counts.bias for counts in net.categories.values()] == [None, 2 / 3, 0]
    assert net.overall == Counts(2, 2, 2)
    assert (net.overall.total, net.overall.bias) == (6, 0.5)
    assert format_csv(found).splitlines() == [
        'name,category,shape,texture,other,shape_bias', 'net,car,0,0,1,', 'net,cat,2,1,1,0.666667',
        'net,dog,0,1,0,0.000000', 'net,all,2,2,2,0.500000']
    rows = [line.split() for line in format_table(found).splitlines()]
    for row in (['car', '-'], ['cat', '66.7'], ['dog', '0.0'], ['all', '50.0'], ['pictures', '6'],
                ['names', 'the', 'shape,', '%', '33.3'], ['names', 'the', 'texture,', '%', '33.3']):
        assert row in rows


def test_sessions_and_groups(write):
    first, second = ANSWERS[:3], ANSWERS[3:]
    whole = read_decisions([write('whole.csv', 'net', ANSWERS)])
    sessions = [write('1.csv', 'net', first), write('2.csv', 'net', second)]
    assert read_decisions(sessions) == whole
    # People see the same pictures, the names of which may begin with those of the experiment.
    people = [write('3.csv', 'subject-01', ANSWERS),
              write('4.csv', 'subject-02', [('0001_dp_cat1-dog1.png', 'dog')])]
    found = read_decisions([*sessions, *people], parse_groups(['people=subject-*']))
    assert list(found) == ['net', 'people']
    assert found['net'] == whole['net']
    assert found['people'].overall == Counts(2, 3, 2)
    assert found['people'].categories['cat'] == Counts(2, 2, 1)


@pytest.mark.parametrize(('name', 'categories'), [
    ('cat7-bird2.png', ('cat', 'bird')), ('knife10-clock1.JPEG', ('knife', 'clock')),
    ('0012_cue_car1-car10.png', ('car', 'car'))])
def test_names_of_pictures(name, categories):
    assert parse_image_name(name) == categories


@pytest.mark.parametrize('name', ['cat-bird.png', 'cat7.png', 'cat7-bird2', '', 'cat7_bird2.png'])
def test_names_that_say_nothing(name):
    with pytest.raises(ValueError, match='does not name a shape and a texture'):
        parse_image_name(name)


def test_files_that_are_no_answers(write, tmp_path):
    good = write('good.csv', 'net', ANSWERS)

    def message(*paths, groups=None):
        with pytest.raises(ValueError, match='^CSV|^group') as raised:
            read_decisions(paths, groups)
        return str(raised.value)

    name = write('name.csv', 'net', [*ANSWERS[:2], ('photo.png', 'cat')])
    assert f"CSV {name}, line 4: 'photo.png' does not name a shape" in message(name)
    path = tmp_path / 'folder.csv'
    path.write_text(f'{HEAD}\nnet,1,1,NaN,cat,bird,NaN,cat3-bird1.png\n')
    assert 'line 2: cat3-bird1.png has the shape cat, but lies in the folder of bird' in message(
        str(path))
    path = tmp_path / 'short.csv'
    path.write_text(f'{HEAD}\nnet,1\n')
    assert "line 2: '' does not name" in message(str(path))
    columns = write('columns.csv', 'net', ANSWERS, head='a,b,c,d,e,category,g,h')
    assert 'has no column subj, object_response, imagename' in message(columns)
    assert 'has no answers' in message(write('empty.csv', 'net', []))
    path = tmp_path / 'none.csv'
    path.write_text('')
    assert 'has no column' in message(str(path))
    path = tmp_path / 'picture.csv'
    path.write_bytes(b'\x89PNG\r\n\x1a\n\xff\xfe\x00')
    assert 'is no text' in message(str(path))
    assert 'net has no answer to a picture with a conflict' in message(
        write('agree.csv', 'net', [('cat1-cat2.png', 'cat')]))
    # A file twice, or two networks of one name, would be mixed up.
    assert f'CSV {good}, line 2: net answers cat1-dog1.png a second time' in message(good, good)
    assert 'group people=subject-*: matches no subject; there are net.' in message(
        good, groups={'people': 'subject-*'})
    with pytest.raises(FileNotFoundError):
        read_decisions([str(tmp_path / 'gone.csv')])


@pytest.mark.parametrize('arguments', [['people'], ['=a'], ['people='], ['a=b', 'a=c']])
def test_groups_of_another_form(arguments):
    with pytest.raises(ValueError, match=f'group {arguments[-1]}: give NAME=PATTERN'):
        parse_groups(arguments)


def test_the_picture_shows_the_numbers(write, tmp_path, monkeypatch):
    figures = []

    def keep(*args, **kwargs):
        figures.append(figure(*args, **kwargs))
        return figures[-1]

    figure = shape_bias_plot.new_figure
    monkeypatch.setattr(shape_bias_plot, 'new_figure', keep)
    found = read_decisions([write('a.csv', 'net', ANSWERS),
                            write('b.csv', 'undecided', [('cow1-dog1.png', 'oven')])])
    draw_shape_bias(found, str(tmp_path / 'bias.png'))
    assert (tmp_path / 'bias.png').read_bytes().startswith(b'\x89PNG')
    ax = figures[0].axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ['car', 'cat', 'cow', 'dog']
    markers, line, nothing = ax.lines
    assert list(zip(*markers.get_data(), strict=True)) == [(2 / 3, 1), (0, 3)]
    assert list(line.get_xdata()) == [0.5, 0.5]
    assert not len(nothing.get_xdata())
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == ['net (50.0%)', 'undecided']


def test_answers_one_by_one():
    decisions = Decisions()
    for answer in ('cat', 'dog', 'bird', 'cat'):
        decisions.add('cat', 'dog', answer)
    decisions.add('dog', 'dog', 'dog')
    assert decisions.categories == {'cat': Counts(2, 1, 1)}
    assert Decisions().overall.bias is None
