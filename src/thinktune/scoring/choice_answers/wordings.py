"""The words and marks around a letter that give its meaning, in English and Chinese above all; `letters` reads by them.
They match texts as `letters` writes them: without markup, in half width, with single spaces."""

from __future__ import annotations

import re

NO_WORD = r"(?![A-Za-z0-9_'+^=*]|\.[a-z]\b)"
ITEM = re.compile(
    r"(?:(?:options?|choices?|answers?|letters?|选项|选)\s*)?"
    r"(?:\((?P<round>[A-Za-z])\)|\[(?P<square>[A-Za-z])\]"
    rf"|(?<![A-Za-z0-9_'(\[])(?:(?P<glued>[A-Z]{{2,10}}){NO_WORD}"
    rf"|(?P<bare>[A-Za-z])(?P<mark>\)|\.(?![A-Za-z0-9])|)){NO_WORD})",
    re.I,
)
AND = re.compile(
    r"\s*(?:[,、;&]\s*(?:(?:and|as well as)\b|和|与|及|以及)?|(?:and|as well as)\b|和|与|以及|及)\s*", re.I
)
MORE = re.compile(r"(?:\s*(?:[,、&]|and\b|or\b|和|与)\s*\(?[A-Z]\)?(?![A-Za-z]))*")
OR = re.compile(r"\s*(?:[,、;]\s*)?(?:(?:or|and/or)\b(?:\s+(?:maybe|perhaps|possibly|even))?|或者?|还是|/|\|)\s*", re.I)
# What may follow a letter without a mark in a sentence, so that it was not the start of one, or an article.
AFTER = re.compile(
    r"\s*(?:$|[^\w\s'(+^=*/|-]|\n|[–—])|\s-\s|\s\(|\s?(?:项|选项|因|是|而|吧|才|正确|为)"
    r"|\s(?:because|since|as|which|with|due|given|so|but|(?:and )?not|rather|instead|is|was|would|must|only"
    r"|in this case)\b",
    re.I,
)
AFTER_SMALL = re.compile(
    r"\s*(?:$|[.,;:!?\n]|(?:because|since|and not|rather|instead|is the answer|is (?:correct|right))\b|[^\x00-\x7f])"
)
WRONG = re.compile(
    r"\s*,?\s*(?:选?项|选项)?\s*"
    r"(?:(?:is|are|was|were|seems?|must be|would be|has|does|do|did|will|can|could|should)\s+)?"
    r"(?:(?:both|all|also|clearly|definitely|therefore|simply|just|obviously)\s+)*"
    r"(?:(?:is|are|was|were|ca|does|do|did|would|could)n't\b|cannot\b"
    r"|(?:is|are|was|were|does|do|can|could|would|has)\s+not\b"
    r"|not\s+(?:correct|right|true|possible|valid|it)\b|not\s*[.,]?$"
    r"|wrong|incorrect|false|untrue|invalid|eliminated|excluded|ruled\s+out|impossible|out\b"
    r"|(?:都|均|也|明显|说法|是|显然|可)*(?:错|不|排除|有误))",
    re.I,
)
AUXILIARY_NOT = re.compile(r"\s*(?:is|are|was|were|does|do|can|could|would|has|must|should|will)\s+not\b", re.I)
RIGHT = re.compile(
    r"\s*(?:选?项|选项)?\s*(?:(?:is|are|was|must be|would be|should be|has to be|seems)\s+"
    r"(?:(?:the|both|all|indeed|clearly|only)\s+)*(?:correct|right|best|answer|most)|correct\b|right\b|(?:是|为|才|才是)*(?:正确|对的|对$|答案))",
    re.I,
)
NEGATED = re.compile(
    r"(?:\b(?:not|n't|never|neither|nor|wrong|incorrect|false|eliminat\w*|exclud\w*|rul\w+ out|reject\w*|except|than"
    r"|instead of|unlike|cannot be)\s+(?:(?:the|an?|both|either)\s+)?"
    r"|[不别非没](?:能|应|该|应该|可|可以|要|会)?|排除|错误的?|除了?)$",
    re.I,
)
FILL = (
    r"(?:\s*(?:therefore|thus|clearly|definitely|indeed|most likely|likely|probably|both|only|the|simply|just"
    r"|options?|choices?|letters?|answers?|选项|选择|选)(?![A-Za-z])|\s*[:=>])*\s*"
)
SAID = re.compile(  # that this is the answer
    r"(?:\b(?:answers?|ans\.?|solutions?|réponse|respuesta|resposta|risposta|antwort|ответ|답|정답|答え|正解"
    r"|(?:my|our) (?:choice|pick|guess|selection|option)"
    r"|(?:correct|right|best|final)\s+(?:options?|choices?|letters?|alternatives?|one))"
    r"(?:\s+(?:to|for|of|here|in)\b(?:\s+(?:this|the|that|question|problem|case|\d+))*)?"
    r"\s*(?:(?:is|are|was|est|es|ist|è|é|は|은|는|would be|should be|must be|will be|has to be|(?:can|could) only be"
    r"|=|:|->|→|[-–—])\s*)?"
    r"|\b(?:choos(?:e|ing)|cho(?:se|sen)|pick(?:ed)?|select(?:ed)?|go(?:ing)? with|opt for|settle on)\b"
    r"|(?:答案|正确的?选项|正确的?选择)\s*(?:就|应该|应当|应|只能)?\s*(?:选择|选|是|为)?"
    r"|(?:故|应该?|因此|所以|本题|只能|可)?选择?\s*(?:是|为)?)" + FILL,
    re.I,
)
HINTED = re.compile(  # by what is also said of other letters
    r"(?:\b(?:options?|choices?|alternatives?)\b|选项"
    r"|\b(?:(?:it|this|that|which)\s*(?:is|'s|must be|should be|has to be|would be|corresponds to|matches|means|gives))"
    r"|\b(?:therefore|thus|hence|so)\b,?|\bi (?:think|guess|believe|say)(?: that)?(?: it is| it's)?)" + FILL,
    re.I,
)
LABEL = re.compile(
    r"(?:(?:options?|choices?|选项)\s*)?"
    r"(?:\((?P<round>[A-Za-z])\)|\[(?P<square>[A-Za-z])\]"
    r"|(?P<letter>[A-Za-z])(?P<mark>\s?\)|\s?[.:、](?!\s?=)|\s[-–—](?=\s)))\s*[.:、]?",
    re.I,
)
FURTHER = re.compile(rf"(?<![A-Za-z0-9.'(\[])(?:{LABEL.pattern})", re.I)
ABBREVIATION = re.compile(r"(?:[A-Za-z]\.){2,}(?:\s|$)|[a-z]\.[a-z]\b")
HEDGE = re.compile(
    r"^(?:(?:both|only|just|probably|maybe|perhaps|likely|definitely|clearly|certainly|i guess|就是|只有|可能是)"
    r"(?![A-Za-z])\s*,?\s*)+"
    r"|^either\s+",
    re.I,
)
REASONED = re.compile(
    r"([A-Za-z])(?: ?,? (?:because|since)\b| ?, (?:as|for|which)\b| ?,? (?:i\.e|that is|namely)\b"
    r"| ?[,.] ?(?:因为|由于|理由)| \((?=[^()]{2,}\)\.?$))"
)
TITLE = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Prof|Sr|Jr|No|vs|Gen|Sen|Rev|Lt|Capt|[A-Za-z])\.\s*$")
NEGATIVE = re.compile(r"\b(?:wrong|incorrect|false|not|no|isn't|neither|nor)\b|错|不|排除", re.I)
