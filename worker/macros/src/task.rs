//! From a function to a function and a module with its task.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{
    Attribute, Expr, FnArg, Ident, ItemFn, LitStr, Pat, PatType, Token, Type,
    parse::{Parse, ParseStream},
    spanned::Spanned,
};

/// `"name", setting = value, setting`.
struct Arguments {
    name: LitStr,
    settings: Vec<(Ident, Option<Expr>)>,
}

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let name = input.parse().map_err(|error| {
            syn::Error::new(error.span(), "the name that callers use comes first: #[task(\"shop.price\")]")
        })?;
        let mut settings = Vec::new();
        while input.parse::<Option<Token![,]>>()?.is_some() && !input.is_empty() {
            let setting = input.parse()?;
            let value = match input.parse::<Option<Token![=]>>()? {
                Some(_) => Some(input.parse()?),
                None => None,
            };
            settings.push((setting, value));
        }
        if !input.is_empty() {
            return Err(input.error("expected a comma"));
        }
        Ok(Self { name, settings })
    }
}

pub(crate) fn expand(arguments: TokenStream, function: TokenStream) -> syn::Result<TokenStream> {
    let Arguments { name, settings } = syn::parse2(arguments)?;
    let mut function: ItemFn = syn::parse2(function)?;
    let signature = &mut function.sig;
    if let Some(generic) = signature.generics.params.first() {
        return Err(syn::Error::new(generic.span(), "a task has no type parameters: its arguments are JSON"));
    }
    let mut names = Vec::new();
    let mut taken = Vec::new();
    let mut passed = Vec::new();
    let mut has_defaults = false;
    for (index, input) in signature.inputs.iter_mut().enumerate() {
        let FnArg::Typed(parameter) = input else {
            return Err(syn::Error::new(input.span(), "a task is no method"));
        };
        let default = take_default(parameter)?;
        if let Some(name) = argument_name(parameter) {
            names.push(name);
        }
        let (variable, kind) = (format_ident!("argument_{index}"), &parameter.ty);
        match default {
            None => {
                taken.push(quote!(#variable: #kind));
                passed.push(quote!(#variable));
            }
            Some(default) => {
                has_defaults = true;
                taken.push(quote!(#variable: ::core::option::Option<#kind>));
                passed.push(quote!(#variable.unwrap_or_else(|| #default)));
            }
        }
    }
    let (visibility, ident) = (&function.vis, &function.sig.ident);
    let called =
        if has_defaults { quote!(|#(#taken),*| super::#ident(#(#passed),*)) } else { quote!(super::#ident) };
    let settings = settings.iter().map(|(setting, value)| quote!(.#setting(#value)));
    let documentation = format!("The task `{}`.", name.value());
    Ok(quote! {
        #function

        #[doc = #documentation]
        #visibility mod #ident {
            #[allow(unused_imports, reason = "types of parameters, and what defaults and settings use")]
            use super::*;

            /// The task, to be registered with a worker.
            pub fn task() -> ::soloist_worker::Task {
                ::soloist_worker::Task::new(#name, #called).parameters([#(#names),*]) #(#settings)*
            }
        }
    })
}

/// Takes `#[default(expression)]` off a parameter.
fn take_default(parameter: &mut PatType) -> syn::Result<Option<Expr>> {
    let is_default = |attribute: &Attribute| attribute.path().is_ident("default");
    let Some(index) = parameter.attrs.iter().position(is_default) else { return Ok(None) };
    parameter.attrs.remove(index).parse_args().map(Some)
}

/// What callers call a parameter; none for those that take no argument of their own.
fn argument_name(parameter: &PatType) -> Option<String> {
    if let Type::Path(kind) = &*parameter.ty {
        let last = kind.path.segments.last()?;
        if ["Context", "State", "Args"].iter().any(|own| last.ident == own) {
            return None;
        }
    }
    match &*parameter.pat {
        Pat::Ident(name) => Some(name.ident.to_string()),
        // Still a place of its own among the arguments.
        _ => Some(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(arguments: TokenStream, function: TokenStream) -> String {
        expand(arguments, function).unwrap_err().to_string()
    }

    #[test]
    fn a_task_has_the_names_of_its_parameters_and_its_settings() {
        let expanded = expand(
            quote!("shop.price", max_retries = 5, ignore_result),
            quote!(
                fn price(context: Context, pieces: u32, #[default(7)] cents: u32) -> u32 {
                    pieces * cents
                }
            ),
        );
        let text = expanded.unwrap().to_string();
        assert!(text.contains(r#"parameters (["pieces" , "cents"])"#), "{text}");
        assert!(text.contains(". max_retries (5) . ignore_result ()"), "{text}");
        assert!(
            text.contains("argument_2 . unwrap_or_else (|| 7)") && !text.contains("# [default"),
            "{text}"
        );
    }

    #[test]
    fn mistakes_are_named() {
        let function = || {
            quote!(
                fn price() {}
            )
        };
        assert!(problem(quote!(), function()).contains("the name that callers use comes first"));
        assert!(problem(quote!("shop.price" max), function()).contains("expected a comma"));
        assert!(
            problem(
                quote!("shop.price"),
                quote!(
                    fn price<T>(x: T) {}
                )
            )
            .contains("no type parameters")
        );
        assert!(
            problem(
                quote!("shop.price"),
                quote!(
                    fn price(&self) {}
                )
            )
            .contains("no method")
        );
    }
}
