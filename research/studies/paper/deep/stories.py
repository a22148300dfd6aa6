"""Questions about short stories in the manner of bAbI (Weston et al. 2015, arXiv 1502.05698), from a seeded generator.

People walk between rooms, take things and drop them. Five kinds of questions: where somebody is (one supporting fact),
where a thing is (two), where a thing was before a room (three), how many things somebody carries, and whether somebody
is in a room. Sentences are those of bAbI; the code, and so every story, is this project's own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

PEOPLE = ("Daniel", "John", "Mary", "Sandra")
ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
THINGS = ("apple", "football", "milk")
NUMBERS = ("none", "one", "two", "three")
ANSWERS = ("no", "yes")


@dataclass
class World:
    """Holds who is where with what, and the sentences that say so.

    Attributes:
        rng: Draws what happens.
        sentences: What has happened so far.
        room: Person -> room, of people that have walked.
        holder: Thing -> who has it, or None where it lies; of things that were taken.
        rooms: Thing -> the rooms that it was in, in turn, from where it was first taken.
    """

    rng: np.random.Generator
    sentences: list[str] = field(default_factory=list)
    room: dict[str, str] = field(default_factory=dict)
    holder: dict[str, str | None] = field(default_factory=dict)
    rooms: dict[str, list[str]] = field(default_factory=dict)

    def pick(self, names: tuple[str, ...] | list[str]) -> str:
        """Draws one of some names."""
        return names[self.rng.integers(len(names))]

    def walk(self) -> None:
        """Lets somebody go to another room, with all that they have."""
        person = self.pick(PEOPLE)
        room = self.pick([room for room in ROOMS if room != self.room.get(person)])
        self.room[person] = room
        for thing in self.carried(person):
            self.rooms[thing].append(room)
        self.sentences.append(f"{person} went to the {room}.")

    def handle(self) -> None:
        """Lets somebody take a thing that may be where they are, or drop one that they have; or else walk."""
        person = self.pick(PEOPLE)
        free = [thing for thing in THINGS if self.is_at_hand(thing, person)]
        carried = self.carried(person)
        if not free + carried:
            return self.walk()
        thing = self.pick(free + carried)
        if thing in carried:
            self.holder[thing] = None
            self.sentences.append(f"{person} dropped the {thing}.")
        else:
            self.holder[thing] = person
            self.rooms.setdefault(thing, [self.room[person]])
            self.sentences.append(f"{person} took the {thing}.")

    def carried(self, person: str) -> list[str]:
        """Lists what somebody has."""
        return [thing for thing in THINGS if self.holder.get(thing) == person]

    def is_at_hand(self, thing: str, person: str) -> bool:
        """Says whether somebody can take a thing: it lies where they are, or nobody has ever said where it is."""
        here = self.room.get(person)
        return here is not None and self.holder.get(thing) is None and self.rooms.get(thing, [here])[-1] == here


Asked = tuple[str, str]  # question and answer


def _where_people_are(world: World) -> Iterator[Asked]:
    for person, room in world.room.items():
        yield f"Where is {person}?", room


def _where_things_are(world: World) -> Iterator[Asked]:
    for thing, rooms in world.rooms.items():
        yield f"Where is the {thing}?", rooms[-1]


def _where_things_were(world: World) -> Iterator[Asked]:
    """Asks for the room before one that the thing was in once, so that there is one answer."""
    for thing, rooms in world.rooms.items():
        for before, after in pairwise(rooms):
            if rooms.count(after) == 1:
                yield f"Where was the {thing} before the {after}?", before


def _how_many(world: World) -> Iterator[Asked]:
    for person in world.room:
        yield f"How many objects is {person} carrying?", NUMBERS[len(world.carried(person))]


def _whether_people_are_there(world: World) -> Iterator[Asked]:
    for person, here in world.room.items():
        for room in ROOMS:
            yield f"Is {person} in the {room}?", ANSWERS[room == here]


@dataclass(frozen=True)
class Kind:
    """Says how stories of a kind of questions are made.

    Attributes:
        ask: Gives all questions that a world answers.
        answers: All answers.
        sentences: Fewest and most sentences of a story.
        handling: Share of the sentences that are of things, about.
    """

    ask: Callable[[World], Iterator[Asked]]
    answers: tuple[str, ...]
    sentences: tuple[int, int]
    handling: float


KINDS = {
    "one_fact": Kind(_where_people_are, ROOMS, (4, 10), 0.0),
    "two_facts": Kind(_where_things_are, ROOMS, (4, 10), 0.4),
    "three_facts": Kind(_where_things_were, ROOMS, (6, 12), 0.4),
    "counting": Kind(_how_many, NUMBERS, (4, 12), 0.7),
    "yes_no": Kind(_whether_people_are_there, ANSWERS, (2, 8), 0.0),
}


def questions(kind: str, seed: int) -> Iterator[tuple[str, str, str]]:
    """Makes story, question and answer, one after the other and none twice; all answers are about equally frequent.

    Args:
        kind: One of `KINDS`.
        seed: Seed of all that happens.
    """
    made, rng = KINDS[kind], np.random.default_rng(seed)
    seen: set[tuple[str, str]] = set()
    while True:
        wanted = made.answers[rng.integers(len(made.answers))]
        fits: list[str] = []
        while not fits:
            world = World(rng)
            world.walk()
            for _ in range(rng.integers(made.sentences[0], made.sentences[1], endpoint=True) - 1):
                world.handle() if rng.random() < made.handling else world.walk()
            story = " ".join(world.sentences)
            fits = [asked for asked, answer in made.ask(world) if answer == wanted and (story, asked) not in seen]
        asked = world.pick(fits)
        seen.add((story, asked))
        yield story, asked, wanted


def data_set(kind: str, sizes: dict[str, int], seed: int) -> DatasetDict:
    """Makes splits that share no story with its question.

    Args:
        kind: One of `KINDS`.
        sizes: Split -> number of rows.
        seed: Seed of the generator.

    Returns:
        Split -> rows of `question`, `story` and `label`, a class named after its answer.
    """
    features = Features(
        {"question": Value("string"), "story": Value("string"), "label": ClassLabel(names=[*KINDS[kind].answers])}
    )
    made, splits = questions(kind, seed), DatasetDict()
    for split, size in sizes.items():
        rows = [next(made) for _ in range(size)]
        stories, asked, answers = map(list, zip(*rows, strict=True))
        splits[split] = Dataset.from_dict({"question": asked, "story": stories, "label": answers}, features)
    return splits
