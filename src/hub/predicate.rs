//! Checked conditions and one relation → a predicate over its tuples.
//!
//! In:     [`Bound`] conditions (`subscribe` makes them), a relation, row images.
//! Out:    [`Match`]: yes, no, or what to ask Postgres.
//! Never:  an answer that could differ from Postgres' own; IO.
//! Source: a filter means `column operator operand` with both sides of the column's type.

use super::datum::{Datum, Kind};
use super::filter::Operator;
use crate::change::value::Type;
use crate::change::{Relation, Tuple, Value};

/// Steps of matching one `like` pattern here; a longer match is left to Postgres and its timeout.
const LIKE_STEPS_MAX: usize = 1 << 20;

/// What `is` compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Is {
    /// Any type.
    Null,
    /// `boolean` only.
    True,
    /// `boolean` only.
    False,
    /// `boolean` only; the same as null.
    Unknown,
}

impl Is {
    /// From the word in a filter, lower case only.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "null" => Some(Self::Null),
            "true" => Some(Self::True),
            "false" => Some(Self::False),
            "unknown" => Some(Self::Unknown),
            _ => None,
        }
    }
}

/// The right side of a comparison, as the column type's output function writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Operand {
    /// One value, or a pattern as it was written.
    Value(Box<str>),
    /// The elements of an `in` list; `None` is a null among them.
    List(Box<[Option<Box<str>>]>),
    /// What `is` compares with.
    Is(Is),
}

/// A condition that was checked against a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Bound {
    /// Column name.
    pub column: Box<str>,
    /// The column's type when it was checked; with another the condition must be checked again.
    pub type_oid: u32,
    /// The type its values compare as: below all domains.
    pub base_oid: u32,
    /// The comparison.
    pub operator: Operator,
    /// Whether the opposite must be true.
    pub negated: bool,
    /// What to compare with.
    pub operand: Operand,
    /// Equal means equal bytes: a deterministic collation, or an enum.
    pub bytewise: bool,
    /// The column's collation as SQL, quoted by the server, when it is not its type's own.
    pub collation: Option<Box<str>>,
}

/// Which columns a row image carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// Every column (a large one may still be [`Value::Unchanged`]).
    Whole,
    /// Only those of the replica identity.
    Key,
}

/// Whether a row image fulfils a predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// It does.
    Yes,
    /// It does not, or a column it names is not there.
    No,
    /// Only Postgres can tell: see [`Predicate::questions`].
    Ask,
}

/// One comparison for Postgres to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Question<'a> {
    /// Type of the column.
    pub type_oid: u32,
    /// The comparison.
    pub operator: Operator,
    /// Whether the opposite must be true.
    pub negated: bool,
    /// The column's value in text form.
    pub value: &'a [u8],
    /// What to compare with.
    pub operand: &'a Operand,
    /// As in [`Bound::collation`].
    pub collation: Option<&'a str>,
}

/// Why conditions no longer fit their table: end the subscription, or check it again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unbound {
    /// The column is gone.
    #[error("column {0} is not in the table")]
    NoColumn(Box<str>),
    /// The column has another type now.
    #[error("column {0} changed its type")]
    TypeChanged(Box<str>),
}

/// Conditions on one relation's tuples, all of which must hold.
#[derive(Debug, Clone)]
pub struct Predicate {
    tests: Box<[Test]>,
}

#[derive(Debug, Clone)]
struct Test {
    column: usize,
    in_identity: bool,
    bound: Bound,
    how: How,
}

#[derive(Debug, Clone)]
enum How {
    Is(Is),
    /// Against one datum; the operator is one of the six comparisons or `isdistinct`.
    Compare(Kind, Datum<'static>),
    /// Against each; the flag tells of a null in the list.
    Any(Kind, Box<[Datum<'static>]>, bool),
    Like(Pattern),
    Ask,
}

static TRUE: [Datum<'static>; 1] = [Datum::Number(1)];
static FALSE: [Datum<'static>; 1] = [Datum::Number(0)];

/// What an index can look a condition up by.
#[derive(Debug)]
pub(super) enum Anchor<'a> {
    /// The column equals one of these.
    Values(Kind, &'a [Datum<'static>]),
    /// The column is null.
    Null,
}

impl Predicate {
    /// Ties checked conditions to the columns of `relation`.
    ///
    /// # Errors
    /// [`Unbound`] when the table changed since they were checked.
    pub fn compile(conditions: &[Bound], relation: &Relation) -> Result<Self, Unbound> {
        let tests = conditions.iter().map(|bound| {
            let column = relation
                .column(&bound.column)
                .ok_or_else(|| Unbound::NoColumn(bound.column.clone()))?;
            let definition = &relation.columns[column];
            if definition.type_oid != bound.type_oid {
                return Err(Unbound::TypeChanged(bound.column.clone()));
            }
            Ok(Test {
                column,
                in_identity: definition.in_identity,
                bound: bound.clone(),
                how: plan(bound, &definition.kind),
            })
        });
        Ok(Self { tests: tests.collect::<Result<_, _>>()? })
    }

    /// Whether every row fulfils it.
    pub fn is_unconditional(&self) -> bool {
        self.tests.is_empty()
    }

    /// Whether a row image fulfils every condition.
    pub fn matches(&self, tuple: &Tuple, image: Image) -> Match {
        self.matches_besides(tuple, image, None)
    }

    /// As [`matches`](Self::matches), taking condition `known` to hold.
    pub(super) fn matches_besides(
        &self,
        tuple: &Tuple,
        image: Image,
        known: Option<usize>,
    ) -> Match {
        let mut result = Match::Yes;
        for (index, test) in self.tests.iter().enumerate() {
            if Some(index) == known {
                continue;
            }
            match test.matches(tuple, image) {
                Match::Yes => {}
                Match::No => return Match::No,
                Match::Ask => result = Match::Ask,
            }
        }
        result
    }

    /// After [`Match::Ask`]: the comparisons that decide. The row matches when all are true.
    pub fn questions<'a>(
        &'a self,
        tuple: &'a Tuple,
        image: Image,
    ) -> impl Iterator<Item = Question<'a>> {
        self.tests.iter().filter_map(move |test| {
            let Value::Text(value) = tuple.get(test.column) else { return None };
            (test.matches(tuple, image) == Match::Ask).then_some(Question {
                type_oid: test.bound.type_oid,
                operator: test.bound.operator,
                negated: test.bound.negated,
                value,
                operand: &test.bound.operand,
                collation: test.bound.collation.as_deref(),
            })
        })
    }

    /// The condition that narrows most: its place, its column, and what to look up.
    pub(super) fn anchor(&self) -> Option<(usize, usize, Anchor<'_>)> {
        let anchors = self.tests.iter().enumerate().filter_map(|(index, test)| {
            let anchor = test.anchor()?;
            let cost = match &anchor {
                Anchor::Values(Kind::Bool, _) => 300,
                Anchor::Values(_, values) => values.len(),
                Anchor::Null => 200,
            };
            Some((cost, (index, test.column, anchor)))
        });
        anchors.min_by_key(|(cost, _)| *cost).map(|(_, anchor)| anchor)
    }

    /// Whether the column of condition `index` is part of the replica identity.
    pub(super) fn is_in_identity(&self, index: usize) -> bool {
        self.tests.get(index).is_some_and(|test| test.in_identity)
    }
}

/// How to test a condition here, if at all.
fn plan(bound: &Bound, kind: &Type) -> How {
    let native = Kind::of(bound.base_oid, bound.bytewise);
    match (bound.operator, &bound.operand) {
        // A composite is null when all its fields are: its text alone does not tell.
        (Operator::Is, Operand::Is(Is::Null)) if !matches!(kind, Type::Composite(_)) => {
            How::Is(Is::Null)
        }
        (Operator::Is, Operand::Is(is)) if native == Some(Kind::Bool) => How::Is(*is),
        (Operator::Eq | Operator::Neq | Operator::IsDistinct, Operand::Value(value)) => {
            compare(native, value)
        }
        (Operator::Lt | Operator::Lte | Operator::Gt | Operator::Gte, Operand::Value(value)) => {
            compare(native.filter(|kind| kind.is_ordered()), value)
        }
        (Operator::In, Operand::List(list)) => {
            let elements = |kind: Kind| -> Option<Box<[_]>> {
                let known = list.iter().flatten();
                known.map(|text| Some(kind.read(text.as_bytes())?.into_owned())).collect()
            };
            match native.and_then(|kind| Some((kind, elements(kind)?))) {
                Some((kind, datums)) => How::Any(kind, datums, list.contains(&None)),
                None => How::Ask,
            }
        }
        (Operator::Like | Operator::ILike, Operand::Value(value)) if native == Some(Kind::Text) => {
            let folded = bound.operator == Operator::ILike;
            Pattern::parse(value, folded).map_or(How::Ask, How::Like)
        }
        (
            Operator::Eq
            | Operator::Neq
            | Operator::Lt
            | Operator::Lte
            | Operator::Gt
            | Operator::Gte
            | Operator::In
            | Operator::Like
            | Operator::ILike
            | Operator::Is
            | Operator::Match
            | Operator::IMatch
            | Operator::IsDistinct,
            _,
        ) => How::Ask,
    }
}

fn compare(kind: Option<Kind>, operand: &str) -> How {
    kind.and_then(|kind| Some(How::Compare(kind, kind.read(operand.as_bytes())?.into_owned())))
        .unwrap_or(How::Ask)
}

impl Test {
    fn matches(&self, tuple: &Tuple, image: Image) -> Match {
        if image == Image::Key && !self.in_identity {
            return Match::No;
        }
        let answer = match tuple.get(self.column) {
            Value::Unchanged => return Match::No,
            Value::Null => Ok(self.of_null()),
            Value::Text(text) => self.of_text(text),
        };
        match answer {
            Ok(Some(truth)) if truth != self.bound.negated => Match::Yes,
            Ok(_) => Match::No,
            Err(Undecided) => Match::Ask,
        }
    }

    /// The comparison with a null on its left, before `not`; `None` is SQL's unknown.
    fn of_null(&self) -> Option<bool> {
        match (self.bound.operator, &self.bound.operand) {
            (Operator::IsDistinct, _) => Some(true),
            (Operator::Is, operand) => Some(matches!(operand, Operand::Is(Is::Null | Is::Unknown))),
            // Nothing is in an empty list, not even the unknown.
            (Operator::In, Operand::List(list)) if list.is_empty() => Some(false),
            (
                Operator::Eq
                | Operator::Neq
                | Operator::Lt
                | Operator::Lte
                | Operator::Gt
                | Operator::Gte
                | Operator::In
                | Operator::Like
                | Operator::ILike
                | Operator::Match
                | Operator::IMatch,
                _,
            ) => None,
        }
    }

    /// The comparison with a value on its left, before `not`; `None` is SQL's unknown.
    fn of_text(&self, text: &[u8]) -> Result<Option<bool>, Undecided> {
        match &self.how {
            How::Ask => Err(Undecided),
            How::Is(Is::Null | Is::Unknown) => Ok(Some(false)),
            How::Is(is @ (Is::True | Is::False)) => {
                let value = Kind::Bool.read(text).ok_or(Undecided)?;
                Ok(Some(value == Datum::Number(i64::from(*is == Is::True))))
            }
            How::Compare(kind, operand) => {
                let value = kind.read(text).ok_or(Undecided)?;
                Ok(Some(match self.bound.operator {
                    Operator::Eq => value == *operand,
                    Operator::Neq | Operator::IsDistinct => value != *operand,
                    Operator::Lt => value < *operand,
                    Operator::Lte => value <= *operand,
                    Operator::Gt => value > *operand,
                    Operator::Gte => value >= *operand,
                    Operator::In
                    | Operator::Like
                    | Operator::ILike
                    | Operator::Is
                    | Operator::Match
                    | Operator::IMatch => return Err(Undecided),
                }))
            }
            // Nothing is in an empty list, however the value is written; of a null it is unknown.
            How::Any(_, operands, has_null) if operands.is_empty() => {
                Ok((!has_null).then_some(false))
            }
            How::Any(kind, operands, has_null) => {
                let value = kind.read(text).ok_or(Undecided)?;
                let found = operands.contains(&value);
                Ok((found || !has_null).then_some(found))
            }
            How::Like(pattern) => pattern.matches(text).map(Some).ok_or(Undecided),
        }
    }

    fn anchor(&self) -> Option<Anchor<'_>> {
        let negated = self.bound.negated;
        match (&self.how, self.bound.operator) {
            (How::Compare(kind, operand), Operator::Eq) if !negated => {
                Some(Anchor::Values(*kind, std::slice::from_ref(operand)))
            }
            (How::Compare(kind, operand), Operator::Neq | Operator::IsDistinct) if negated => {
                Some(Anchor::Values(*kind, std::slice::from_ref(operand)))
            }
            (How::Any(kind, operands, _), _) if !negated => Some(Anchor::Values(*kind, operands)),
            (How::Is(Is::Null | Is::Unknown), _) if !negated => Some(Anchor::Null),
            (How::Is(Is::True), _) if !negated => Some(Anchor::Values(Kind::Bool, &TRUE)),
            (How::Is(Is::False), _) if !negated => Some(Anchor::Values(Kind::Bool, &FALSE)),
            (How::Is(_) | How::Compare(..) | How::Any(..) | How::Like(_) | How::Ask, _) => None,
        }
    }
}

/// No answer that is certain to be Postgres' own.
struct Undecided;

/// A `like` pattern with the default escape, for values and patterns where no locale matters.
#[derive(Debug, Clone)]
struct Pattern {
    tokens: Box<[Token]>,
    folded: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    One(char),
    AnyOne,
    AnyMany,
}

impl Pattern {
    fn parse(text: &str, folded: bool) -> Option<Self> {
        if folded && !text.is_ascii() {
            return None;
        }
        let mut tokens = Vec::new();
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            tokens.push(match character {
                '%' if tokens.last() == Some(&Token::AnyMany) => continue,
                '%' => Token::AnyMany,
                '_' => Token::AnyOne,
                // Postgres raises an error when it meets a lone backslash at the end.
                '\\' => Token::One(characters.next()?),
                character => Token::One(character),
            });
        }
        Some(Self { tokens: tokens.into(), folded })
    }

    /// Whether all of `text` matches; none when only Postgres can tell.
    fn matches(&self, text: &[u8]) -> Option<bool> {
        let text = str::from_utf8(text).ok()?;
        if text.len().saturating_mul(self.tokens.len()) > LIKE_STEPS_MAX {
            return None;
        }
        if !self.folded {
            return Some(self.run(text, |character| character));
        }
        if !text.is_ascii() {
            return None;
        }
        // Among ASCII letters, locales differ only in the lower case of I: dotted or not.
        let dotted = self.run(text, |character| character.to_ascii_lowercase());
        let dotless = self.run(text, |character| match character {
            'I' => 'ı',
            character => character.to_ascii_lowercase(),
        });
        (dotted == dotless).then_some(dotted)
    }

    /// Greedy from the left; on a mismatch the last `%` takes one character more.
    fn run(&self, text: &str, fold: impl Fn(char) -> char) -> bool {
        let (mut token, mut rest) = (0, text.chars());
        let mut retry: Option<(usize, std::str::Chars<'_>)> = None;
        loop {
            let mut ahead = rest.clone();
            let next = ahead.next();
            match (self.tokens.get(token), next) {
                (None, None) => return true,
                (Some(Token::AnyMany), _) => {
                    token += 1;
                    retry = Some((token, rest.clone()));
                    continue;
                }
                (Some(Token::AnyOne), Some(_)) => {
                    (token, rest) = (token + 1, ahead);
                    continue;
                }
                (Some(Token::One(wanted)), Some(found)) if fold(*wanted) == fold(found) => {
                    (token, rest) = (token + 1, ahead);
                    continue;
                }
                // The text ended first: more for an earlier `%` leaves even less.
                (Some(Token::One(_) | Token::AnyOne), None) => return false,
                (None | Some(Token::One(_)), Some(_)) => {}
            }
            let Some((after, from)) = &mut retry else { return false };
            if from.next().is_none() {
                return false;
            }
            (token, rest) = (*after, from.clone());
        }
    }
}

/// The text that a type's output function writes for input `text`, when that and the type's
/// comparisons are certain without asking Postgres. `bytewise` as in [`Bound::bytewise`].
pub fn canonical(type_oid: u32, bytewise: bool, text: &str) -> Option<Box<str>> {
    Kind::of(type_oid, bytewise)?.canonical(type_oid, text).map(Into::into)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::change::{Column, ReplicaIdentity};

    /// A relation of columns `c0`, `c1`, …; the first is its identity.
    pub(in crate::hub) fn relation(types: &[u32]) -> Relation {
        let columns = types.iter().enumerate().map(|(index, type_oid)| Column {
            name: format!("c{index}").into(),
            attnum: None,
            type_oid: *type_oid,
            type_name: "irrelevant".into(),
            kind: if *type_oid == COMPOSITE { Type::Composite(Box::default()) } else { Type::Text },
            in_identity: index == 0,
            in_primary_key: index == 0,
        });
        Relation {
            oid: 1,
            schema: "public".into(),
            table: "t".into(),
            replica_identity: ReplicaIdentity::Default,
            columns: columns.collect(),
        }
    }

    pub(in crate::hub) fn bound(
        column: usize,
        type_oid: u32,
        operator: Operator,
        negated: bool,
        operand: Operand,
    ) -> Bound {
        Bound {
            column: format!("c{column}").into(),
            type_oid,
            base_oid: type_oid,
            operator,
            negated,
            operand,
            bytewise: matches!(type_oid, 19 | 25 | 1042 | 1043 | ENUM),
            collation: None,
        }
    }

    pub(in crate::hub) fn list(elements: &[Option<&str>]) -> Operand {
        Operand::List(elements.iter().map(|element| element.map(Into::into)).collect())
    }

    fn value(text: &str) -> Operand {
        Operand::Value(text.into())
    }

    const INT: u32 = 23;
    const ENUM: u32 = 20000;
    const COMPOSITE: u32 = 20001;
    const JSONB: u32 = 3802;

    fn check(bound: &Bound, given: Value<'_>, expected: Match) {
        let predicate =
            Predicate::compile(std::slice::from_ref(bound), &relation(&[bound.type_oid])).unwrap();
        let tuple = Tuple::copied([given]);
        assert_eq!(predicate.matches(&tuple, Image::Whole), expected, "{bound:?} {given:?}");
        let asked = predicate.questions(&tuple, Image::Whole).count();
        assert_eq!(asked == 1, expected == Match::Ask, "{bound:?} {given:?}");
    }

    #[test]
    fn a_null_is_unknown_to_everything_but_is_and_isdistinct() {
        use Operator as O;
        for operator in O::ALL {
            let operand = match operator {
                O::Is => Operand::Is(Is::Null),
                O::In => list(&[Some("1")]),
                O::Eq
                | O::Neq
                | O::Lt
                | O::Lte
                | O::Gt
                | O::Gte
                | O::Like
                | O::ILike
                | O::Match
                | O::IMatch
                | O::IsDistinct => value("1"),
            };
            for (negated, type_oid) in [(false, INT), (true, INT), (false, JSONB), (true, JSONB)] {
                let holds = matches!(operator, O::Is | O::IsDistinct) && !negated;
                let expected = if holds { Match::Yes } else { Match::No };
                let bound = bound(0, type_oid, operator, negated, operand.clone());
                check(&bound, Value::Null, expected);
                check(&bound, Value::Unchanged, Match::No);
            }
        }
        check(&bound(0, INT, O::In, true, list(&[])), Value::Null, Match::Yes);
        check(&bound(0, 16, O::Is, false, Operand::Is(Is::Unknown)), Value::Null, Match::Yes);
        check(&bound(0, 16, O::Is, true, Operand::Is(Is::True)), Value::Null, Match::Yes);
        check(&bound(0, 16, O::Is, false, Operand::Is(Is::False)), Value::Text(b"f"), Match::Yes);
    }

    #[test]
    fn a_null_in_a_list_makes_a_miss_unknown() {
        let given = Value::Text(b"2");
        let with_null = list(&[Some("1"), None]);
        check(&bound(0, INT, Operator::In, false, with_null.clone()), given, Match::No);
        check(&bound(0, INT, Operator::In, true, with_null), given, Match::No);
        check(&bound(0, INT, Operator::In, true, list(&[Some("1")])), given, Match::Yes);
        check(&bound(0, INT, Operator::In, false, list(&[Some("2"), None])), given, Match::Yes);
        check(&bound(0, INT, Operator::In, false, list(&[])), given, Match::No);
    }

    #[test]
    fn what_only_postgres_knows_is_asked() {
        use Operator as O;
        let text = Value::Text(b"abc");
        check(&bound(0, 25, O::Lt, false, value("b")), text, Match::Ask);
        check(&bound(0, ENUM, O::Lt, false, value("b")), text, Match::Ask);
        check(&bound(0, 25, O::Match, false, value("a.c")), text, Match::Ask);
        check(&bound(0, JSONB, O::Eq, false, value("{}")), text, Match::Ask);
        check(&bound(0, 1042, O::Like, false, value("abc")), text, Match::Ask);
        check(&bound(0, INT, O::Eq, false, value("1")), Value::Text(b" 1"), Match::Ask);
        check(&bound(0, COMPOSITE, O::Is, false, Operand::Is(Is::Null)), text, Match::Ask);
        check(&bound(0, ENUM, O::Eq, false, value("abc")), text, Match::Yes);
        let mut nondeterministic = bound(0, 25, O::Eq, false, value("abc"));
        nondeterministic.bytewise = false;
        check(&nondeterministic, text, Match::Ask);
    }

    #[test]
    fn a_key_image_answers_only_for_identity_columns() {
        let conditions = [0, 1].map(|c| bound(c, INT, Operator::Neq, false, value("5")));
        let tuple = Tuple::copied([Value::Text(b"1"), Value::Null]);
        let relation = relation(&[INT, INT]);
        let matches = |condition: &Bound, image| {
            let predicate = Predicate::compile(std::slice::from_ref(condition), &relation);
            predicate.unwrap().matches(&tuple, image)
        };
        assert_eq!(matches(&conditions[0], Image::Key), Match::Yes);
        assert_eq!(matches(&conditions[1], Image::Key), Match::No);
        let is_null = bound(1, INT, Operator::Is, false, Operand::Is(Is::Null));
        assert_eq!(matches(&is_null, Image::Key), Match::No);
        assert_eq!(matches(&is_null, Image::Whole), Match::Yes);
    }

    #[test]
    fn a_changed_table_unbinds() {
        let condition = [bound(1, INT, Operator::Eq, false, value("5"))];
        let compile = |types: &[u32]| Predicate::compile(&condition, &relation(types)).map(|_| ());
        assert_eq!(compile(&[INT, INT]), Ok(()));
        assert_eq!(compile(&[INT]), Err(Unbound::NoColumn("c1".into())));
        assert_eq!(compile(&[INT, 25]), Err(Unbound::TypeChanged("c1".into())));
    }

    #[test]
    fn like_without_a_locale() {
        let check = |operator, pattern: &str, text: &str, expected| {
            check(
                &bound(0, 25, operator, false, value(pattern)),
                Value::Text(text.as_bytes()),
                expected,
            );
        };
        for (pattern, text, expected) in [
            ("", "", Match::Yes),
            ("", "a", Match::No),
            ("%", "", Match::Yes),
            ("_", "é", Match::Yes),
            ("__", "é", Match::No),
            ("a%b%c", "aXbYbZc", Match::Yes),
            ("a%b%c", "aXbYbZ", Match::No),
            ("%ab", "aab", Match::Yes),
            ("%_a", "a", Match::No),
            (r"\%", "%", Match::Yes),
            (r"\%", "a", Match::No),
            (r"a\", "a", Match::Ask),
            ("A", "a", Match::No),
        ] {
            check(Operator::Like, pattern, text, expected);
        }
        check(Operator::ILike, "HEL%", "hello", Match::Yes);
        check(Operator::ILike, "x%", "hello", Match::No);
        check(Operator::ILike, "I", "I", Match::Yes);
        check(Operator::ILike, "i%", "i", Match::Yes);
        // Turkish says no, others yes.
        check(Operator::ILike, "i", "I", Match::Ask);
        check(Operator::ILike, "é", "é", Match::Ask);
        check(Operator::ILike, "e", "é", Match::Ask);
        check(Operator::Like, &"%a".repeat(2000), &"b".repeat(2000), Match::Ask);
    }
}
