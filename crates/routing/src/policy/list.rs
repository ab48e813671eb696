//! The macro that makes modules and `PolicyKind` from the list of policies.

/// Declares the module of every policy and generates [`PolicyKind`](super::PolicyKind) from the
/// list, in its order. A line reads
///
/// ```text
/// mod file: Kind, free or sticky, constructor, "Description.";
/// ```
///
/// The file defines a struct called like the kind. Its own name is the name that users write, so
/// it is the kind in snake case. A sticky policy keeps requests with the same key or prompt
/// together, whatever the load. The constructor makes the struct from `&Params`.
macro_rules! policies {
    ($(mod $file:ident: $kind:ident, $stickiness:ident, $new:expr, $doc:literal;)+) => {
        $(
            mod $file;
            use $file::$kind;
        )+

        /// The policies by name, as flags, fields and metrics spell them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum PolicyKind {
            $(#[doc = $doc] $kind,)+
        }

        impl PolicyKind {
            /// Every policy, in the order `PolicyType` numbers them.
            pub const ALL: [Self; [$(Self::$kind),+].len()] = [$(Self::$kind),+];

            /// The name users write.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => stringify!($file),)+
                }
            }

            /// Whether it keeps requests with the same key or prompt together, whatever the load.
            pub fn is_sticky(self) -> bool {
                match self {
                    $(Self::$kind => policies!(@$stickiness),)+
                }
            }

            /// The branches that picks of this policy name; empty if there is but one way to choose.
            pub fn branches(self) -> &'static [Branch] {
                match self {
                    $(Self::$kind => $kind::branches(),)+
                }
            }

            /// A fresh instance.
            pub fn build(self, params: &Params) -> Box<dyn Policy> {
                fn boxed<P: Policy + 'static>(
                    new: impl FnOnce(&Params) -> P,
                    params: &Params,
                ) -> Box<dyn Policy> {
                    Box::new(new(params))
                }
                match self {
                    $(Self::$kind => boxed($new, params),)+
                }
            }
        }
    };
    (@free) => { false };
    (@sticky) => { true };
}
