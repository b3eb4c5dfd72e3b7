//! The names of systemd's units, and what they say of a cgroup.
//!
//! ```text
//! user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome\x2dterminal-4711.scope
//! └─ slices ───────────────┘ └─ unit ────────┘ └─ slice of the user's manager, and its unit
//! ```
//! The rules are those of systemd's src/basic/cgroup-util.c and unit-name.c; see also systemd.unit(5).

use std::borrow::Cow;

use super::ClaimedBy;

/// The longest name of a unit, in bytes (unit-name.h, UNIT_NAME_MAX).
const LONGEST_NAME: usize = 255;

/// The types of units (unit-def.h).
const TYPES: [&str; 11] =
    ["service", "scope", "slice", "mount", "swap", "socket", "target", "device", "automount", "timer", "path"];

/// The slice that a cgroup belongs to by its name.
pub fn slice(component: &[u8]) -> Option<&str> {
    valid(component).filter(|name| name.ends_with(".slice") && !name.contains('@'))
}

/// The unit, other than a slice, that a cgroup belongs to by its name.
pub fn unit(component: &[u8]) -> Option<&str> {
    valid(component).filter(|name| !name.ends_with(".slice"))
}

/// The name of the unit. systemd puts one underscore before a name that could be one of the kernel's (cg_escape).
fn valid(component: &[u8]) -> Option<&str> {
    // LXC's cgroups end in the name of a container, which may end like a unit.
    if component.starts_with(b"lxc.payload.") || component.starts_with(b"lxc.monitor.") {
        return None;
    }
    let name = std::str::from_utf8(component.strip_prefix(b"_").unwrap_or(component)).ok()?;
    let (stem, kind) = name.rsplit_once('.')?;
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '_' | '.' | '\\' | '-' | '@');
    let has_instance = match stem.split_once('@') {
        // A template is not what a process belongs to: only its instances are.
        Some((prefix, instance)) => !prefix.is_empty() && !instance.is_empty(),
        None => !stem.is_empty(),
    };
    (name.len() <= LONGEST_NAME && TYPES.contains(&kind) && stem.chars().all(known) && has_instance).then_some(name)
}

/// For whom a unit is a service manager, so that the cgroups below are named by others: `user@1000.service` for a
/// user, `capsule@NAME.service` for a capsule.
pub fn manager(unit: &str) -> Option<ClaimedBy<'_>> {
    let name = unit.strip_suffix(".service")?;
    if let Some(capsule) = name.strip_prefix("capsule@") {
        return Some(ClaimedBy::Capsule(capsule));
    }
    uid(name.strip_prefix("user@")?).map(ClaimedBy::User)
}

/// The id of the session that a scope is for (sd-login, cg_path_get_session).
pub fn session(unit: &str) -> Option<&str> {
    let id = unit.strip_prefix("session-")?.strip_suffix(".scope")?;
    (!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(id)
}

/// The user to whom the slices of a path belong: `user.slice/user-1000.slice`.
pub fn user_of_slices(slices: &[&str]) -> Option<u32> {
    match slices {
        ["user.slice", slice, ..] => uid(slice.strip_prefix("user-")?.strip_suffix(".slice")?),
        _ => None,
    }
}

/// A user id as systemd writes it: without a sign and without leading zeros.
fn uid(digits: &str) -> Option<u32> {
    digits.parse().ok().filter(|uid: &u32| uid.to_string() == digits)
}

/// A part of a unit's name with each `\x2d` as the byte that it stands for.
pub fn unescape(name: &str) -> Cow<'_, [u8]> {
    if !name.contains("\\x") {
        return Cow::Borrowed(name.as_bytes());
    }
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = rest.strip_prefix(b"\\x").and_then(|digits| {
            let (digits, after) = digits.split_at_checked(2)?;
            let digit = |at: usize| char::from(digits[at]).to_digit(16);
            Some((u8::try_from(digit(0)? * 16 + digit(1)?).ok()?, after))
        });
        let (byte, after) = escaped.unwrap_or((first, after));
        bytes.push(byte);
        rest = after;
    }
    Cow::Owned(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_systemd_accepts() {
        for name in
            ["getty@tty2.service", "a@b@c.service", "dbus-:1.2-org.x@0.service", r"dev-disk\x2did.swap", "-.mount"]
        {
            assert_eq!(unit(name.as_bytes()), Some(name));
        }
        for name in
            ["getty", "getty@.service", "@a.service", ".service", "a.servic", "a b.service", "ä.service", "a.slice"]
        {
            assert_eq!(unit(name.as_bytes()), None, "{name}");
        }
        assert_eq!(unit(b"_cpu.service"), Some("cpu.service"));
        assert_eq!(unit(b"__x.service"), Some("_x.service"));
        assert_eq!(unit(b"a\xff.service"), None);
        assert_eq!(slice(b"user-1000.slice"), Some("user-1000.slice"));
        assert_eq!(slice(b"user@1000.slice"), None);
    }

    #[test]
    fn a_name_has_at_most_255_bytes() {
        let name = |length: usize| format!("{}.service", "a".repeat(length - ".service".len()));
        assert_eq!(unit(name(255).as_bytes()), Some(&*name(255)));
        assert_eq!(unit(name(256).as_bytes()), None);
    }

    #[test]
    fn escapes_stand_for_bytes_and_what_is_no_escape_stays() {
        assert_eq!(*unescape("web"), *b"web");
        assert_eq!(*unescape(r"web\x2d1\xff"), *b"web-1\xff");
        assert_eq!(*unescape(r"\x2\x2g\\x41\x"), *br"\x2\x2g\A\x");
        assert_eq!(*unescape(r"\x5cx41"), *br"\x41");
    }
}
