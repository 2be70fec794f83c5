"""The needle's sentence and its words: one template for training and evaluation, two sets of words.

    " The secret number of WORD is DDDDD. "                                   somewhere in the prose
    " What is the secret number of WORD? The secret number of WORD is "       the end of the prompt

Key words are lower-case words of 4-7 letters, ranks 201-3000 by frequency in the training books.
Every fifth of them is kept for evaluation: never a key in training, so that a needle is found by
matching and not by having met the key before. (As words of the prose the model has seen them all.)
The training books are not shipped, so the kept words are written down here; the list is the output of

    python -m suites.words FOLDER        FOLDER/pg19/train/*.txt.gz, the 99 books of the weights' card

Training excludes exactly this list, whichever books it reads.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable

NEEDLE = " The secret number of {word} is {number}. "
QUESTION = " What is the secret number of {word}? The secret number of {word} is "
#: Numbers have five digits and no leading zero.
NUMBER_RANGE = (10_000, 100_000)

FIRST_RANK, LAST_RANK, KEPT_EVERY = 201, 3000, 5

# Whole words only: no part of "Half", "half-hour", "didn't" or of a word with an accent.
_BOUNDARY = rb"[A-Za-z0-9_'\x80-\xff-]"
_WORD = re.compile(rb"(?<!" + _BOUNDARY + rb")[a-z]{4,7}(?!" + _BOUNDARY + rb")")


def ranked_words(books: Iterable[bytes]) -> list[str]:
    """Words of ranks 201-3000 (the first 200 are function words), most frequent first, ties by letters."""
    counts: Counter[bytes] = Counter()
    for book in books:
        counts.update(_WORD.findall(book))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [word.decode("ascii") for word in ranked[FIRST_RANK - 1 : LAST_RANK]]


def training_words(books: Iterable[bytes]) -> list[str]:
    """The ranked words that training may use as keys.

    Raises ValueError when the books hold fewer than 64 of them, too few to be anything but memorised.
    """
    kept = set(EVALUATION_WORDS)
    words = [word for word in ranked_words(books) if word not in kept]
    if len(words) < 64:
        raise ValueError(
            f"The training text has only {len(words)} key words of ranks 201-3000; 64 are needed."
        )
    return words


EVALUATION_WORDS = tuple(
    """
    half order hope number during often above city friends least form reason hour help person general kept
    live able fell town evening effect answer cause purpose common early taking hold late proper parts
    talk steam past sound book beyond action tried died added rose doing forth deal hath saying walked
    iron window danger heavy carry bright husband success third tears report usual ship quiet brother
    chair cases move army trees equal breath showed nations started papers shown figure society safe noble
    bound silent heat seven beneath thick reading degree portion island trust step states trying warm
    fight drawn steps engaged curious running corner narrow lying flowers opening fingers spite ordered
    leaves taste captain neck month centre modern birds events greatly finally dream edge besides piston
    facts happen offer fortune knowing thrown enemies tongue seek grown desired pair north capable laugh
    guard granted draw drink measure clothes exactly hung highest task beat pure tall cries driven applied
    courage rate sold freedom twice obtain angry views consent stroke explain price pity shadow aware bore
    ladies murder relief ahead hoped port pounds cruel terror touched choose sing fields nine hopes demand
    wore genius windows fond circle arrival burning grief urged shining hate chapter founded loose fled
    clearly cost nerves lest follows render stated absence divine hurried drop mistake page despair truly
    local effects regret credit writes holy finger figures favour shouted delay devoted armed forgot
    deeply utmost energy plate unhappy throne voices level bare travel popular rode waves alike fourth
    brass ride issue refuse chiefly voyage gaze section prayer revenue maid details utterly forty custom
    calls anybody obvious slipped charged chopped bell permit dreams warning fearful root signs miss gazed
    assure shock habits crank outer hide sole appeal type burden islands bold scheme reward protect deeper
    thanks cave cook sees sighed behalf fleet quality chain submit colour hanging beast bless steel
    blessed pursuit invited courts western payment dragged bowed raising flies cloth mixed pearls tribe
    tones lack impulse thereby perform correct somehow origin crept resist flames enabled sailed cattle
    succeed cottage parted corn missed culture route agents alas examine stolen prey upward finds lofty
    rifle heavily agony apply emotion tragedy flash ugly inquiry counted market conceal opposed yacht
    repeat mood basis pitch slide county remote marks revenge college shadows forever feels sailing beard
    heavens cruelty rushing jealous shine goddess sunset boil folks rats boots holes offence tissues ranks
    deadly pencil daring upright guessed groups plains clerk mingled arrest hiding aroused guarded refer
    unlike escort poems annual folk snake edition rarely consul neglect wake gallant seconds engage linen
    bliss staff pink writers fathers naked wives hunt powder smoking block faced bolts journal stole dine
    wolves longed blown funeral trick easier sink visits drank vein draught normal sauce disturb records
    viewed intent restore dost film model wagon crimson liquid planned toil waving brute joints locks
    someone colours musical secrets wanting float obeyed wander clasped halted pipes towers columns
    flushed lean thief carpet fetch roused cooked mixture roots weep cursed keys theirs anyway curtain
    niece apples damage insult sliced dies glimpse affords collar gallery pillow sworn anchor coach tales
    bloom decay leaped saddle blazing homes purity thither bits eminent fright medical strikes allies
    brush floated likes sins vacuum barrel echoed ledge singer wonders editor parlour subtle woke coffin
    proves tonnage decent flush nobles reflect clung hears opera select warrant cloak joyous product
    sublime beef doom gravity
    """.split()
)

if __name__ == "__main__":
    from .text import load_books

    ranked = ranked_words(book for _, book in load_books(sys.argv[1])[0])
    print(*ranked[::KEPT_EVERY])
