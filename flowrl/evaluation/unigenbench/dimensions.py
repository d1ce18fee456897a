"""The dimensions of UniGenBench++: 10 primary ones, 27 sub-dimensions, and what each asks, in words of our own."""

from __future__ import annotations

from typing import Literal, NamedTuple

Language = Literal["en", "zh"]

COLUMNS = {
    "Style": "Style",
    "World Knowledge": "World Know.",
    "Attribute": "Attribute",
    "Action": "Action",
    "Relationship": "Relation.",
    "Logical Reasoning": "Logic.Reason.",
    "Grammar": "Grammar",
    "Compound": "Compound",
    "Entity Layout": "Layout",
    "Text Generation": "Text",
}
"""Primary dimension -> its column in the G2RPO paper's Table 5, in the table's order (after Overall)."""


class Dimension(NamedTuple):
    """A sub-dimension: its names in the English and the Chinese benchmark, and what a picture must do to pass."""

    en: str
    zh: str
    meaning_en: str
    meaning_zh: str

    @property
    def primary(self) -> str:
        """The primary dimension's English name.

        >>> Dimension("Attribute - Color", "属性-颜色", "", "").primary
        'Attribute'
        """
        return self.en.split(" - ")[0]

    def name(self, language: Language) -> str:
        """The name that prompts of this language use."""
        return self.en if language == "en" else self.zh

    def meaning(self, language: Language) -> str:
        """What is asked, in one sentence."""
        return self.meaning_en if language == "en" else self.meaning_zh


DIMENSIONS = (
    Dimension(
        "Style",
        "风格",
        "the picture as a whole looks as the named art form, medium, technique, school or artist does",
        "整幅画面呈现出所要求的艺术形式、媒介、技法、流派或艺术家的样子",
    ),
    Dimension(
        "World Knowledge",
        "世界知识",
        "a real person, place, object, work or fact that is named can be recognised by what is typical of it",
        "所提到的真实人物、地点、物品、作品或常识能凭其典型特征被认出来",
    ),
    Dimension(
        "Attribute - Quantity",
        "属性-数量",
        "as many of the things are there as the prompt says, counted one by one",
        "逐个数出的数量与提示词所说的一致",
    ),
    Dimension(
        "Attribute - Expression",
        "属性-表情",
        "the face shows the emotion that is asked for, not only a movement of eyes or mouth",
        "面部表现出所要求的情绪，而不只是眼睛或嘴的动作",
    ),
    Dimension(
        "Attribute - Material",
        "属性-材质",
        "the thing is visibly made of the material that is named, by texture, gloss or transparency",
        "从纹理、光泽或透明度能看出物体由所说的材料制成",
    ),
    Dimension("Attribute - Color", "属性-颜色", "the thing has the colour that is named", "物体具有所说的颜色"),
    Dimension(
        "Attribute - Shape",
        "属性-形状",
        "the thing has the outline or form that is named",
        "物体具有所说的轮廓或外形",
    ),
    Dimension(
        "Attribute - Size",
        "属性-大小",
        "the thing is as large, tall, long, thick or wide as the prompt says, seen against what surrounds it",
        "与周围相比，物体的大小、高矮、长短、粗细或宽窄与提示词相符",
    ),
    Dimension(
        "Action - Hand (Character/Anthropomorphic)",
        "动作-人物/拟人手部动作",
        "the hands do what is asked and are drawn well: all fingers there, none broken, fused or too many",
        "手做出所要求的动作，并且画得正确：手指齐全，没有断裂、粘连或多余",
    ),
    Dimension(
        "Action - Full-body (Character/Anthropomorphic)",
        "动作-人物/拟人全身动作",
        "a person, or a thing that acts like one, does with its whole body what is asked",
        "人物或拟人对象用整个身体做出所要求的动作",
    ),
    Dimension(
        "Action - Animal",
        "动作-动物动作",
        "the animal does what is asked",
        "动物做出所要求的动作",
    ),
    Dimension(
        "Action - Contact Interaction",
        "动作-实体间有接触互动",
        "two or more things touch each other in the way that is asked",
        "两个或多个对象以所要求的方式相互接触",
    ),
    Dimension(
        "Action - Non-contact Interaction",
        "动作-实体间无接触互动",
        "two or more things act on each other without touching, for example by looks or gestures",
        "两个或多个对象不接触而相互作用，例如用目光或手势",
    ),
    Dimension(
        "Action - State",
        "动作-状态",
        "the thing is in the lasting state that the prompt's verb names",
        "对象处于提示词中动词所说的持续状态",
    ),
    Dimension(
        "Relationship - Composition",
        "关系-构成关系",
        "one thing is made up of the other things that are named",
        "一个对象由所说的其他对象组成",
    ),
    Dimension(
        "Relationship - Similarity",
        "关系-相似关系",
        "different things resemble each other in the way that is asked",
        "不同的对象在所要求的方面彼此相似",
    ),
    Dimension(
        "Relationship - Inclusion",
        "关系-包含关系",
        "one thing is inside the other, or shown on its surface",
        "一个对象在另一个对象的里面，或呈现在它的表面上",
    ),
    Dimension(
        "Relationship - Comparison",
        "关系-比较关系",
        "two things differ in a property in the way that is said",
        "两个对象在某个属性上的差别与所说的一致",
    ),
    Dimension(
        "Compound - Imagination",
        "复合考点-想象力",
        "what could not exist in reality is there as described",
        "现实中不可能存在的内容按描述出现在画面里",
    ),
    Dimension(
        "Compound - Feature Matching",
        "复合考点-不同实体特征匹配",
        "each thing has the features that belong to it, and none that belong to another",
        "每个对象都具有属于自己的特征，没有与其他对象混淆",
    ),
    Dimension(
        "Entity Layout - Two-Dimensional Space",
        "实体布局-二维空间",
        "the things are where they should be on the picture's plane: left, right, above, below, in the centre",
        "各对象在画面平面上的位置正确：左、右、上、下、中间",
    ),
    Dimension(
        "Entity Layout - Three-Dimensional Space",
        "实体布局-三维空间",
        "the things are where they should be in depth: in front, behind, near, far, inside",
        "各对象在空间纵深上的位置正确：前、后、近、远、内部",
    ),
    Dimension(
        "Grammar - Pronoun Reference",
        "语法-代词指代",
        "what is said of a pronoun is true of the thing that the pronoun stands for",
        "关于代词所说的内容体现在该代词真正所指的对象上",
    ),
    Dimension(
        "Grammar - Consistency",
        "语法-统一性",
        "what is said of several things together is true of every one of them",
        "对多个对象共同的要求在每一个对象上都成立",
    ),
    Dimension(
        "Grammar - Negation",
        "语法-否定",
        "what the prompt rules out is absent, and what it asks for in its place is there",
        "提示词排除的内容没有出现，而取而代之的内容出现了",
    ),
    Dimension(
        "Logical Reasoning",
        "逻辑推理",
        "what has to be concluded from the prompt, without being named in it, is shown",
        "画面展示了提示词没有直接说出、需要推断得到的内容",
    ),
    Dimension(
        "Text Generation",
        "文本生成",
        "the text is written in the picture letter by letter: nothing missing, nothing added, nothing misspelt",
        "画面中的文字逐字正确：不缺、不多、不错",
    ),
)


def by_name(language: Language) -> dict[str, Dimension]:
    """Sub-dimensions by the names that prompts of a language use.

    >>> by_name("zh")["属性-颜色"].en
    'Attribute - Color'
    """
    return {dimension.name(language): dimension for dimension in DIMENSIONS}
